//! What a search found, kept as files.

use crate::cli::CliError;
use crate::record::{Manifest, Plan, Tuned, write_json, write_whole, write_yaml};
use crate::report::tune_page;
use crate::tune::{Answer, Applied};

use super::place;
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
    for (name, text) in [("nccl.conf", &answer.nccl_conf), ("settings.sh", &answer.exports)] {
        folder.write(name, text.as_bytes())?;
    }
    let table = folder.path().join("tuner.csv");
    match &answer.tuner_csv {
        Ok(text) => write_whole(&table, text.as_bytes())?,
        // an earlier answer may have had one
        Err(_) => place::remove(&table)?,
    }
    for (name, bytes) in tune_page(result)?.files {
        folder.write(&name, &bytes)?;
    }
    Ok(Manifest::write(folder)?)
}
