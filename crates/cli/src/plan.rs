//! `revocast publish --dry-run`

use std::fmt::Write as _;
use std::process::ExitCode;

use serde_json::{Value, json};

use crate::admin::{Api, check_realm};
use crate::args::ServerArguments;
use crate::output::{Failure, Output};

pub fn run(output: Output, server: &ServerArguments, realm: Option<String>) -> Result<ExitCode, Failure> {
    let api = Api::new(server)?;
    let realms = match realm {
        Some(realm) => {
            check_realm(&realm)?;
            vec![realm]
        }
        None => names(&api.get("/v1/realms")?),
    };
    let (mut words, mut plans) = (String::new(), Vec::new());
    for realm in realms {
        let plan = api.get(&format!("/v1/realms/{realm}/plan"))?;
        tell(&mut words, &realm, &plan);
        plans.push(json!({ "realm": realm, "plan": plan }));
    }
    output.result(words.trim_end(), &json!({ "plans": plans }));
    Ok(ExitCode::SUCCESS)
}

fn names(realms: &Value) -> Vec<String> {
    let listed = realms.get("realms").and_then(Value::as_array).into_iter().flatten();
    listed.filter_map(|realm| realm.get("name")?.as_str().map(str::to_owned)).collect()
}

/// A plan as people read it. Writing to a text cannot fail.
fn tell(words: &mut String, realm: &str, plan: &Value) {
    let show = |value: &Value, name: &str| match value.get(name) {
        Some(Value::String(text)) => text.clone(),
        Some(Value::Null) | None => "-".to_owned(),
        Some(other) => other.to_string(),
    };
    let top = |name: &str| show(plan, name);
    let _ = writeln!(
        words,
        "realm {realm}: term {}, epoch {}, published to {} of {}; a manifest in {} ms at the latest",
        top("term"),
        top("epoch"),
        top("sequence"),
        top("head"),
        top("next_manifest_ms")
    );
    let steps = plan.get("steps").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    if steps.is_empty() {
        let _ = writeln!(words, "  nothing to do");
    }
    for step in steps {
        let (name, address, bytes, why) =
            (show(step, "step"), show(step, "address"), show(step, "bytes"), show(step, "why"));
        let _ = writeln!(words, "  {name:<9} {address:<24} {bytes:>8} bytes  {why}");
    }
    let left_out = plan.get("steps_left_out").and_then(Value::as_u64).unwrap_or_default();
    if left_out > 0 {
        let _ = writeln!(words, "  and {left_out} more");
    }
    let Some(policy) = plan.get("epoch_policy") else { return };
    let _ = writeln!(words, "  a new epoch is due: {}", show(policy, "due"));
    let figures = [
        ("ladder bytes", "ladder_bytes", "ladder_bytes_max"),
        ("statements", "statements", "statements_max"),
        ("pieces", "pieces", "pieces_max"),
        ("expired entries", "dead", "dead_max"),
        ("age in seconds", "age_seconds", "age_seconds_max"),
        ("filter rate", "filter_rate", "filter_rate_max"),
    ];
    for (name, figure, limit) in figures {
        let _ = writeln!(words, "    {name:<16} {:>12} of {}", show(policy, figure), show(policy, limit));
    }
}
