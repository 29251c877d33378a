//! `revocast verify`: tokens on standard input, one verdict a line.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use revocast_core::{Base, Now, RevocationSet, UnixTime, Witness};
use revocast_device::{
    Checker, KeySet, Policy, Presented, Rejected, Revocations, RevokedPairs, Rule, SystemClock, Token, Unchecked,
    Validator, ValidatorConfig,
};
use serde::Serialize;

use crate::args::Verify;
use crate::output::{Failure, read_file};
use crate::state;

/// At least one token was rejected.
pub const REJECTED: u8 = 3;

/// A line longer than this is no token; the rest of it is skipped unread.
const LINE_BYTES_MAX: u64 = 1024 * 1024;

pub fn run(arguments: &Verify) -> Result<ExitCode, Failure> {
    // Not by `requires`: clap lets it pass beside `--revoked`, which excludes `--state`.
    if arguments.why && arguments.state.is_none() {
        return Err(Failure::plain(
            "no-state-named",
            "--why says what is known of an agent's state, and none is named",
        )
        .help("name the state folder of an agent with --state DIR")
        .usage());
    }
    let keys = key_set(&arguments.jwks)?;
    let mut config = ValidatorConfig::new(&arguments.issuer, arguments.audience.clone(), keys)
        .with_leeway_secs(arguments.leeway)
        .with_lifetime_max(Duration::from_secs(arguments.lifetime));
    if let Some(token_type) = &arguments.token_type {
        config = config.with_type(token_type);
    }
    let now = match arguments.at {
        Some(at) => Now::new(UnixTime::from_secs(at).millis(), Duration::ZERO),
        None => SystemClock::now(),
    };
    if let Some(folder) = &arguments.state {
        let replica = state::restore(&state::newest(folder)?, now)?;
        let set = Arc::new(replica.set().clone());
        let (checker, _exposure) = Checker::new(Arc::clone(&set));
        return judge(config, checker, Policy::strict(), now, arguments.held, arguments.why.then_some(&*set));
    }
    if let Some(path) = &arguments.revoked {
        let pairs = RevokedPairs::from_json(&read_file(path, "the list")?).map_err(|error| {
            Failure::new("bad-list", format!("{} is no JSON array of [iss, jti] pairs", path.display()), &error).usage()
        })?;
        return judge(config, pairs, Policy::strict(), now, arguments.held, None);
    }
    // Nobody named a source: the caller asks about everything but revocation, and every line says so.
    judge(config, Unchecked, Policy::strict().on_not_followed(Rule::Accept), now, arguments.held, None)
}

/// Reads a JWKS file.
fn key_set(path: &std::path::Path) -> Result<KeySet, Failure> {
    KeySet::from_jwks(&read_file(path, "the key set")?)
        .map_err(|error| Failure::new("bad-jwks", format!("{} cannot be used", path.display()), &error).usage())
}

fn judge<R: Revocations>(
    config: ValidatorConfig,
    revocations: R,
    policy: Policy,
    now: Now,
    held: bool,
    explains: Option<&RevocationSet>,
) -> Result<ExitCode, Failure> {
    let validator = Validator::new(config, revocations, policy)
        .map_err(|error| Failure::new("bad-rules", "no validator can be made of these arguments", &error).usage())?;
    let failed = |error: std::io::Error| Failure::new("io", "standard input or output failed", &error);
    let mut input = BufReader::new(std::io::stdin().lock());
    let mut output = std::io::stdout().lock();
    let (mut number, mut rejected) = (0_u64, false);
    while let Some(line) = next_line(&mut input).map_err(failed)? {
        number += 1;
        let presented = if held { Presented::held(&line) } else { Presented::from(&line) };
        let outcome = validator.verify(now, presented);
        rejected |= outcome.is_err();
        let grounds = explains.map(|set| Grounds::of(set, now, &outcome));
        let line = Printed { line: number, judged: Judged::of(&outcome), grounds };
        serde_json::to_writer(&mut output, &line).map_err(|error| failed(error.into()))?;
        writeln!(output).map_err(failed)?;
    }
    Ok(if rejected { ExitCode::from(REJECTED) } else { ExitCode::SUCCESS })
}

/// The next line without its end. What is longer than any token, or not UTF-8, becomes a line that no
/// validator accepts.
fn next_line(input: &mut impl std::io::BufRead) -> std::io::Result<Option<String>> {
    let mut bytes = Vec::new();
    if input.by_ref().take(LINE_BYTES_MAX).read_until(b'\n', &mut bytes)? == 0 {
        return Ok(None);
    }
    if bytes.last() != Some(&b'\n') && bytes.len() as u64 == LINE_BYTES_MAX {
        // Skipped piece by piece, so that an endless line takes no memory.
        loop {
            let (found, used) = {
                let buffer = input.fill_buf()?;
                match buffer.iter().position(|byte| *byte == b'\n') {
                    Some(at) => (true, at + 1),
                    None => (buffer.is_empty(), buffer.len()),
                }
            };
            input.consume(used);
            if found {
                break;
            }
        }
    }
    while matches!(bytes.last(), Some(b'\n' | b'\r')) {
        bytes.pop();
    }
    Ok(Some(String::from_utf8_lossy(&bytes).into_owned()))
}

/// What is printed about a line. The order of the members is that of the documentation.
#[derive(Serialize)]
struct Printed<'a> {
    line: u64,
    #[serde(flatten)]
    judged: Judged<'a>,
    #[serde(flatten)]
    grounds: Option<Grounds>,
}

/// What the answer about a token's revocation rests on, for `--why`.
#[derive(Serialize)]
struct Grounds {
    /// Which structure answered; `None` where the signature does not hold, so that nothing was asked.
    witness: Option<&'static str>,
    /// Where the state stands: epoch and sequence.
    position: String,
    /// Seconds since the last proof that it is current; `None` without one.
    age_seconds: Option<u64>,
    /// What is held of the base.
    profile: Option<&'static str>,
    /// Whether the token was issued while all tokens were registered; `None` where the signature does not hold.
    covered: Option<bool>,
}

impl Grounds {
    fn of(set: &RevocationSet, now: Now, outcome: &Result<Token, Rejected>) -> Self {
        let base = set.base();
        let token = token_of(outcome);
        // The one that the validator asked with.
        let witness = token.and_then(|token| Some((token, token.claims().ok()?))).map(|(token, claims)| {
            // Of another issuer: the validator asked nothing of this set.
            let followed = set.issuer().is_none_or(|issuer| issuer == token.issuer());
            if followed { set.explain(now, &claims).1 } else { Witness::Nothing }
        });
        let covered_until = base.map_or(UnixTime::default(), Base::covered_until);
        Self {
            witness: witness.map(Witness::name),
            position: set.position().to_string(),
            age_seconds: set.age(now).map(|age| age.as_secs()),
            profile: base.map(|base| base.profile().name()),
            covered: token.map(|token| token.issued_at().is_some_and(|iat| iat < covered_until)),
        }
    }
}

/// The token, if its signature holds.
fn token_of(outcome: &Result<Token, Rejected>) -> Option<&Token> {
    match outcome {
        Ok(token) => Some(token),
        Err(rejected) => rejected.token.as_deref(),
    }
}

/// A verdict on a token, as `verify` prints it and the agent answers.
#[derive(Serialize)]
pub struct Judged<'a> {
    verdict: &'static str,
    reason: &'static str,
    jti: Option<&'a str>,
    revocation: &'static str,
}

impl<'a> Judged<'a> {
    /// What a validator's outcome comes to.
    pub fn of(outcome: &'a Result<Token, Rejected>) -> Self {
        let (verdict, reason) = match outcome {
            Ok(_) => ("accept", "accepted"),
            Err(rejected) => ("reject", rejected.reason()),
        };
        let token = token_of(outcome);
        let revocation = token.map_or("unknown", |token| token.verdict().name());
        Self { verdict, reason, jti: token.map(Token::jti), revocation }
    }
}
