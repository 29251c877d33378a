//! What is no JSON, or not the JSON that is asked for, posted to every operation that takes JSON.

use super::*;

/// Texts that a parser may stumble over, none of them a request: by the cases of `JSONTestSuite` (n_, i_ and y_).
const TEXTS: &[&str] = &[
    "",
    " ",
    "\n",
    "{",
    "}",
    "[",
    "]",
    "{}",
    "[]",
    "[[]]",
    "null",
    "true",
    "false",
    "nul",
    "NULL",
    "True",
    "0",
    "-0",
    "1",
    "-",
    "+1",
    "01",
    "-01",
    "1.",
    ".5",
    "1e",
    "1e+",
    "1E400",
    "-1e400",
    "0x10",
    "NaN",
    "Infinity",
    "-Infinity",
    "1_000",
    "\"\"",
    "\"",
    "\"a",
    "'a'",
    "\"\\\"",
    "\"\\x41\"",
    "\"\\u12\"",
    "\"\\ud800\"",
    "\"\\udc00\\ud800\"",
    "\"\u{1}\"",
    "\"a\nb\"",
    "{\"jti\"}",
    "{\"jti\":}",
    "{\"jti\":1,}",
    "{,}",
    "{\"jti\" \"t\"}",
    "{jti:\"t\"}",
    "{'jti':'t'}",
    "{\"a\":1,\"a\":2}",
    "{\"jti\":\"t\"}}",
    "{\"jti\":\"t\"} {}",
    "{}x",
    "{}\u{0}",
    "[1,]",
    "[1,,2]",
    "[,1]",
    "[1 2]",
    "// c\n{}",
    "/* c */{}",
    "{}#",
    "<xml/>",
    "\u{feff}{}",
    "{\"\\u0000\":1}",
    "{\"__proto__\":{}}",
    "{\"constructor\":1}",
    "{\"\":\"\"}",
    "[\"t\",1900000000]",
    "{\"jti\":{\"jti\":{\"jti\":{}}}}",
    "{\"jti\":[\"t\"],\"exp\":1900000000}",
    "{\"jti\":\"t\",\"exp\":\"1900000000\"}",
    "{\"jti\":\"t\",\"exp\":1e999}",
    "{\"jti\":\"t\",\"exp\":18446744073709551616}",
    "{\"jti\":\"t\",\"exp\":-1}",
    "{\"jti\":\"t\",\"exp\":1900000000.5}",
    "{\"jti\":\"\\ud800\",\"exp\":1900000000}",
    "{\"jti\":\"t\",\"exp\":1900000000,\"exp\":1}",
    "{\"jti\":\"t\",\"exp\":1900000000,\"extra\":[]}",
    "{\"revocations\":{}}",
    "{\"revocations\":[null]}",
    "{\"revocations\":[[]]}",
    "{\"scope\":null}",
    "{\"scope\":[\"realm\"]}",
    "{\"scope\":\"REALM\"}",
    "{\"until\":null}",
    "{\"until\":1e30}",
    "{\"keys\":[null]}",
    "{\"keys\":[{\"kty\":null}]}",
    "{\"name\":null,\"issuer\":null}",
    "{\"name\":\"\\u0000\",\"issuer\":\"i\"}",
];

fn bodies() -> Vec<Vec<u8>> {
    let mut bodies: Vec<Vec<u8>> = TEXTS.iter().map(|text| text.as_bytes().to_vec()).collect();
    bodies.extend([
        b"\xff".to_vec(),
        b"\xff\xfe{\0}\0".to_vec(),
        b"{\"jti\":\"\xff\"}".to_vec(),
        b"{\"jti\":\"\xed\xa0\x80\",\"exp\":1900000000}".to_vec(),
        b"{\"jti\":\"\xc0\xaf\",\"exp\":1900000000}".to_vec(),
        vec![0; 1_000],
        "[".repeat(100_000).into_bytes(),
        "{\"a\":".repeat(100_000).into_bytes(),
        format!("{}1{}", "[".repeat(500), "]".repeat(500)).into_bytes(),
        format!("{{\"jti\":\"{}\"}}", "x".repeat(100_000)).into_bytes(),
        format!("{{{}}}", (0..5_000).map(|n| format!("\"k{n}\":{n}")).collect::<Vec<_>>().join(",")).into_bytes(),
        format!("1{}", "0".repeat(100_000)).into_bytes(),
        format!("{{\"exp\":0.{}1}}", "0".repeat(100_000)).into_bytes(),
    ]);
    bodies
}

#[tokio::test]
async fn nothing_that_is_posted_is_more_than_the_clients_mistake() {
    let site = Site::new().await;
    let bodies = bodies();
    assert!(bodies.len() >= 60);
    let mut posted = 0;
    for (method, path, operation) in operations(&site).await {
        let Some(kinds) = operation["requestBody"]["content"].as_object() else { continue };
        for kind in kinds.keys() {
            for body in &bodies {
                let answer = site.acting(&site.token).ask(method.clone(), &path, kind, body.clone()).await;
                let place = || format!("{method} {path} {:?}", String::from_utf8_lossy(&body[..body.len().min(60)]));
                // A form or a stream of lines may take what is no JSON, and then says what became of it.
                let right =
                    if kind == "application/json" { (400..500).contains(&answer.status) } else { answer.status < 500 };
                assert!(right, "{}: {} {}", place(), answer.status, answer.body);
                assert!(
                    operation["responses"][answer.status.to_string()].is_object(),
                    "{}: {}",
                    place(),
                    answer.status
                );
                posted += 1;
            }
        }
    }
    assert!(posted > 1_000, "{posted}");
    assert_eq!(site.head().await, 0);
    assert_eq!(site.ledger.realms().await.unwrap().len(), 1);
}

#[tokio::test]
async fn repeated_requests_are_one_entry_whatever_their_order() {
    // A retry storm: three tokens, a hundred requests, exps that differ; one entry for each later exp, never one more.
    let site = Site::new().await;
    let mut latest = [0; 3];
    let mut entries = 0;
    for step in 0_u64..100 {
        let which = (step.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 61) as usize % 3;
        let exp = NOW + 40 * DAY + (step.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 60) * DAY;
        let answer = site.revoke(&json!({"jti": format!("t{which}"), "exp": exp})).await;
        let new = exp > latest[which];
        assert_eq!(answer.status, if new { 201 } else { 200 }, "step {step}: {}", answer.body);
        latest[which] = latest[which].max(exp);
        entries += u64::from(new);
        assert_eq!(answer.body["exp"], json!(latest[which]), "the later one is kept");
        assert_eq!(site.head().await, entries);
    }
}
