//! `schemas/` holds the JSON schema of every record, as the types have it. `RIGSCALE_BLESS=1` rewrites it.

use std::fs;
use std::path::Path;

#[test]
fn committed_schemas_are_those_of_the_types() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("schemas");
    let mut names = Vec::new();
    let capture = ("capture-line", rigscale::probe::capture_schema());
    for (name, schema) in rigscale::record::schemas().into_iter().chain([capture]) {
        let path = folder.join(format!("{name}.schema.json"));
        let text = serde_json::to_string_pretty(&schema).unwrap() + "\n";
        if std::env::var_os("RIGSCALE_BLESS").is_some() {
            fs::write(&path, &text).unwrap();
        }
        let committed = fs::read_to_string(&path).unwrap_or_default();
        assert!(committed == text, "{} is not the schema of the type; RIGSCALE_BLESS=1 rewrites it", path.display());
        names.push(format!("{name}.schema.json"));
    }
    for entry in fs::read_dir(&folder).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        assert!(names.contains(&name), "schemas/{name} belongs to no record");
    }
}
