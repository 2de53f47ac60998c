#![no_main]

use libfuzzer_sys::fuzz_target;
use rigscale::probe::import::Kind;

fuzz_target!(|text: &str| rigscale_fuzz::import_holds(Kind::EnvReport, text));
