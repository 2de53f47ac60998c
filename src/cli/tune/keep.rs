//! What a search found, kept as files.

use crate::cli::CliError;
use crate::record::{Manifest, Plan, Tuned, write_json, write_yaml};
use crate::report::tune_page;
use crate::tune::{Answer, Applied};

use super::setup::{Setup, folder, qualifying};

/// Writes the answer in every form, the charts, and the plan that qualifies with it.
///
/// # Errors
/// A file cannot be written.
pub(super) fn keep(setup: &Setup, answer: &Answer, applied: &Applied) -> Result<(), CliError> {
    let (folder, result) = (folder(setup), &answer.result);
    let tuned = Tuned { identity: result.identity.clone(), setting: result.best.setting.clone(), gain: result.gain };
    let mut why = result.sentences.clone();
    let plan = qualifying(setup, result.target, applied);
    why.extend(plan.why.iter().cloned());
    write_yaml(&folder.plan(), &Plan { tuned: Some(tuned), why, ..plan })?;
    write_json(&folder.path().join("tune.json"), result)?;
    let texts = [("nccl.conf", &answer.nccl_conf), ("tuner.csv", &answer.tuner_csv), ("settings.sh", &answer.exports)];
    for (name, text) in texts {
        folder.write(name, text.as_bytes())?;
    }
    for (name, bytes) in tune_page(result)?.files {
        folder.write(&name, &bytes)?;
    }
    Ok(Manifest::write(folder)?)
}
