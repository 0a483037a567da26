//! Writes the CRDs as YAML into the folder named first, one file a kind; with `--check` only compares.

use std::path::Path;
use std::process::ExitCode;

use belay_crds::definitions;
use serde_json::Value;

const HEADER: &str = "# Generated from crds/src by `make generate`: edit there.\n";

fn main() -> Result<ExitCode, Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let folder = arguments.next().ok_or("usage: generate FOLDER [--check]")?;
    let check = arguments.next().as_deref() == Some("--check");
    let mut drifted = false;
    for definition in definitions()? {
        let plural =
            definition.pointer("/spec/names/plural").and_then(Value::as_str).ok_or("a kind without a plural")?;
        let file = Path::new(&folder).join(format!("{plural}.yaml"));
        let text = render(&definition)?;
        if !check {
            std::fs::write(&file, text)?;
        } else if std::fs::read_to_string(&file).unwrap_or_default() != text {
            eprintln!("{} is not what crds/src says: run `make generate`", file.display());
            drifted = true;
        }
    }
    Ok(if drifted { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// Values hold sorted maps, so that a diff shows what changed and nothing else.
fn render(definition: &Value) -> Result<String, serde_saphyr::ser::Error> {
    Ok(format!("{HEADER}{}", serde_saphyr::to_string(definition)?))
}
