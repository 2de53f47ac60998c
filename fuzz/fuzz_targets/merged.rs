#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|texts: &str| rigscale_fuzz::merge_holds(texts));
