//! `import`: revokes every token of a list that another system kept.
//!
//! Each format is a [`Source`]: it reads lines and gives the JSON lines that the server takes. What a line says wrong
//! is told with its number, by us or by the server, and never passed over.

use std::cell::Cell;
use std::fmt::Write as _;
use std::io::Read;
use std::process::ExitCode;
use std::rc::Rc;
use std::time::{SystemTime, UNIX_EPOCH};

use csv::ByteRecord;
use jiff::Timestamp;
use revocast_core::limits::ISSUED_LINE_BYTES_MAX;
use serde::Serialize;
use serde_json::Value;

use crate::admin::{Api, check_realm};
use crate::args::{Import, KeyValue, ListFormat};
use crate::output::{Failure, Output};
use crate::upload::{Input, Part, RawLines, Source, Tally, Upload, name, unreadable};

/// A record of a CSV file that is longer has a quote that nobody closed.
const RECORD_BYTES_MAX: usize = 64 * 1024;

/// From here on a time is in milliseconds: in seconds it is the year 5138.
const MILLISECONDS_FROM: u64 = 100_000_000_000;

/// A time to live beyond this is a time, or in milliseconds: thirty years.
const TTL_MAX: u64 = 30 * 366 * 24 * 3600;

/// What [`KeyValue`]s say of a key that has no end, and of one that is gone.
const NO_END: &str = "-1";
const GONE: &str = "-2";

pub fn run(output: Output, arguments: &Import) -> Result<ExitCode, Failure> {
    let Import { file, realm, reason, .. } = arguments;
    check_realm(realm)?;
    let by_name = || match file.extension().and_then(|extension| extension.to_str()) {
        Some("csv") => ListFormat::Csv,
        _ => ListFormat::Ndjson,
    };
    let format = arguments.format.unwrap_or_else(by_name);
    if format != ListFormat::Redis && (arguments.value.is_some() || arguments.key != "{jti}") {
        return Err(Failure::plain("usage", "--key and --value are for --format redis").usage());
    }
    if format == ListFormat::Ndjson && reason.is_some() {
        return Err(Failure::plain("usage", "--reason is for csv and redis; in ndjson each line has its own").usage());
    }
    let api = Api::new(&arguments.server)?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let lifetime = longest_lifetime(&api, realm)?;
    let input = Input::open(file, output)?;
    let bar = input.bar();
    let reason = reason.as_deref();
    let endless = Rc::new(Cell::new(0));
    let mut unused = Vec::new();
    let mut source: Box<dyn Source + '_> = match format {
        ListFormat::Ndjson => Box::new(RawLines::new(input)),
        ListFormat::Csv => {
            let list = CsvList::new(input, reason)?;
            unused.clone_from(&list.unused);
            Box::new(list)
        }
        ListFormat::Redis => Box::new(RedisKeys {
            input,
            line: Vec::new(),
            pattern: Pattern::new(&arguments.key)?,
            value: arguments.value,
            now,
            latest: now + lifetime,
            endless: Rc::clone(&endless),
            reason,
        }),
    };
    let upload = Upload {
        api: &api,
        path: format!("/v1/realms/{realm}/revocations/import"),
        counts: &["recorded", "repeated", "expired", "refused"],
        from_line: arguments.from_line,
        keep_going: arguments.keep_going,
        done: "imported",
    };
    let tally = upload.run(&mut *source, &bar)?;
    drop(source);
    if tally.counts.iter().all(|(_, count)| *count == 0) {
        let what = format!("{} names no token from line {} on", name(file), arguments.from_line);
        return Err(Failure::plain("nothing-to-import", what).usage());
    }
    let mut members = tally.value();
    members.insert("without_end".to_owned(), endless.get().into());
    members.insert("unused_columns".to_owned(), unused.clone().into());
    output.result(words(&tally, &unused, endless.get(), lifetime), &Value::Object(members));
    if tally.count("refused") == 0 { Ok(ExitCode::SUCCESS) } else { Err(tally.refusal(file, "")) }
}

fn words(tally: &Tally, unused: &[String], endless: u64, lifetime: u64) -> String {
    let count = |name| tally.count(name);
    let mut words = format!(
        "revoked {}, revoked already {}, expired {}, refused {}",
        count("recorded"),
        count("repeated"),
        count("expired"),
        count("refused")
    );
    if !unused.is_empty() {
        let _ = write!(words, "\ncolumns that were not used: {}", unused.join(", "));
    }
    if endless > 0 {
        let _ = write!(
            words,
            "\n{endless} keys came without an end; they are kept for {lifetime} s from now, the longest that a token of \
             the realm can live"
        );
    }
    words
}

/// The longest lifetime of a token of the realm, in seconds.
fn longest_lifetime(api: &Api, realm: &str) -> Result<u64, Failure> {
    let answer = api.get("/v1/realms")?;
    let realms = answer.get("realms").and_then(Value::as_array);
    let found = realms.into_iter().flatten().find(|found| found.get("name").and_then(Value::as_str) == Some(realm));
    let lifetime = found.and_then(|found| found.get("max_token_lifetime")).and_then(Value::as_u64);
    lifetime.ok_or_else(|| {
        Failure::plain("realm-unknown", format!("there is no realm {realm}"))
            .help("list them with: revocast realm list")
            .usage()
    })
}

/// A line that the server takes.
#[derive(Serialize)]
struct Line<'a> {
    jti: &'a str,
    exp: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'a str>,
}

impl Line<'_> {
    fn put(&self, part: &mut Part) {
        match serde_json::to_vec(self) {
            Ok(json) if json.len() > ISSUED_LINE_BYTES_MAX => {
                part.refuse(format!("it has {} bytes, more than {ISSUED_LINE_BYTES_MAX}", json.len()));
            }
            Ok(json) => part.push(&json),
            // Texts and a number always serialize.
            Err(error) => part.refuse(error.to_string()),
        }
    }
}

/// A time in seconds since 1970, or as RFC 3339 writes it.
fn time(text: &str) -> Result<u64, String> {
    if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
        return match text.parse::<u64>() {
            Ok(seconds) if seconds < MILLISECONDS_FROM => Ok(seconds),
            _ => Err(format!("exp {text} is in milliseconds; seconds since 1970 are wanted")),
        };
    }
    let at: Timestamp = text.parse().map_err(|_| {
        format!("exp {text:?} is no time; seconds since 1970 are wanted, or RFC 3339 such as 2033-05-18T03:33:20Z")
    })?;
    // Never too early.
    let seconds = at.as_second() + i64::from(at.subsec_nanosecond() > 0);
    u64::try_from(seconds).map_err(|_| format!("exp {text:?} lies before 1970"))
}

// ---- CSV ------------------------------------------------------------------------------------------

/// A CSV file whose first line names the columns.
struct CsvList<'a> {
    reader: csv::Reader<Feed>,
    record: ByteRecord,
    at: Rc<Place>,
    columns: Columns,
    unused: Vec<String>,
    reason: Option<&'a str>,
    /// Whether a record was read and not given yet.
    ahead: bool,
}

#[derive(Clone, Copy)]
struct Columns {
    jti: usize,
    exp: usize,
    reason: Option<usize>,
    count: usize,
}

impl<'a> CsvList<'a> {
    fn new(input: Input, reason: Option<&'a str>) -> Result<Self, Failure> {
        let at = Rc::new(Place::default());
        let feed = Feed { input, line: Vec::new(), given: 0, at: Rc::clone(&at) };
        let mut reader = csv::ReaderBuilder::new().flexible(true).trim(csv::Trim::All).from_reader(feed);
        let bad = |what: String| {
            Failure::plain("bad-header", format!("line 1: {what}"))
                .help("the first line names the columns: jti and exp, and reason if there are reasons")
                .usage()
        };
        let headers = reader.byte_headers().map_err(|error| unreadable(1, &error))?;
        let names: Vec<String> = headers.iter().map(|name| String::from_utf8_lossy(name).into_owned()).collect();
        let place = |wanted: &str| -> Result<Option<usize>, Failure> {
            let mut places = names.iter().enumerate().filter(|(_, name)| name.eq_ignore_ascii_case(wanted));
            match (places.next(), places.next()) {
                (Some(_), Some(_)) => Err(bad(format!("two columns are called {wanted}"))),
                (place, _) => Ok(place.map(|(place, _)| place)),
            }
        };
        let found = names.join(", ");
        let needed = |place: Option<usize>, wanted: &str| {
            place.ok_or_else(|| bad(format!("no column is called {wanted}, only {found:?}")))
        };
        let columns = Columns {
            jti: needed(place("jti")?, "jti")?,
            exp: needed(place("exp")?, "exp")?,
            reason: place("reason")?,
            count: names.len(),
        };
        let used = [Some(columns.jti), Some(columns.exp), columns.reason];
        let unused = (0..).zip(&names).filter(|(place, _)| !used.contains(&Some(*place)));
        let unused = unused.map(|(_, name)| name.clone()).collect();
        Ok(Self { reader, record: ByteRecord::new(), at, columns, unused, reason, ahead: false })
    }

    fn give(&self, part: &mut Part) {
        let Columns { jti, exp, reason, count } = self.columns;
        if self.record.len() != count {
            return part.refuse(format!("it has {} fields, and the header {count}", self.record.len()));
        }
        let text = |place: usize| std::str::from_utf8(self.record.get(place).unwrap_or_default());
        let (Ok(jti), Ok(exp), Ok(reason)) = (text(jti), text(exp), reason.map_or(Ok(""), text)) else {
            return part.refuse("it is not UTF-8");
        };
        match time(exp) {
            Ok(exp) => {
                Line { jti, exp, reason: Some(reason).filter(|text| !text.is_empty()).or(self.reason) }.put(part);
            }
            Err(why) => part.refuse(why),
        }
    }
}

impl Source for CsvList<'_> {
    fn next(&mut self, part: &mut Part) -> Result<bool, Failure> {
        if !self.ahead {
            self.at.first.set(None);
            self.at.bytes.set(0);
            let read = self.reader.read_byte_record(&mut self.record);
            if !read.map_err(|error| unreadable(part.next_line(), &error))? {
                return Ok(false);
            }
        }
        let line = self.at.first.get().unwrap_or(0);
        // The header, blank lines, and the further lines of a record say nothing.
        self.ahead = part.next_line() < line;
        if self.ahead {
            part.skip();
        } else {
            self.give(part);
        }
        Ok(true)
    }
}

/// Where a file of records is read.
#[derive(Default)]
struct Place {
    line: Cell<u64>,
    /// The first line of this record.
    first: Cell<Option<u64>>,
    /// Bytes of this record.
    bytes: Cell<usize>,
}

/// Gives one line at a time, so that a record is read before the next one begins, and its lines can be counted; ends
/// a record that has no end, before it takes all memory.
struct Feed {
    input: Input,
    line: Vec<u8>,
    /// Bytes of the line that were given.
    given: usize,
    at: Rc<Place>,
}

impl Read for Feed {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let Place { line, first, bytes } = &*self.at;
        if self.given == self.line.len() {
            self.given = 0;
            if !self.input.line(&mut self.line, RECORD_BYTES_MAX + 1)? {
                self.line.clear();
                return Ok(0);
            }
            if self.line.last() == Some(&b'\r') {
                self.line.pop();
            }
            line.set(line.get() + 1);
            if first.get().is_none() && !self.line.is_empty() {
                first.set(Some(line.get()));
            }
            self.line.push(b'\n');
            bytes.set(bytes.get() + self.line.len());
            if bytes.get() > RECORD_BYTES_MAX {
                let what = format!("a record of more than {RECORD_BYTES_MAX} bytes; is a quote not closed?");
                return Err(std::io::Error::other(what));
            }
        }
        let rest = self.line.get(self.given..).unwrap_or_default();
        let length = rest.len().min(buffer.len());
        buffer[..length].copy_from_slice(&rest[..length]);
        self.given += length;
        Ok(length)
    }
}

// ---- Redis ----------------------------------------------------------------------------------------

/// What `redis-cli --scan` prints: a key a line, and behind it its time to live, if somebody put it there.
struct RedisKeys<'a> {
    input: Input,
    line: Vec<u8>,
    pattern: Pattern,
    value: Option<KeyValue>,
    now: u64,
    /// When every token issued by now is expired.
    latest: u64,
    /// Keys without an end.
    endless: Rc<Cell<u64>>,
    reason: Option<&'a str>,
}

impl Source for RedisKeys<'_> {
    fn next(&mut self, part: &mut Part) -> Result<bool, Failure> {
        let read = self.input.line(&mut self.line, ISSUED_LINE_BYTES_MAX + 1);
        if !read.map_err(|error| unreadable(part.next_line(), &error))? {
            return Ok(false);
        }
        if self.line.trim_ascii().is_empty() {
            part.skip();
            return Ok(true);
        }
        match self.read() {
            Ok(Some((jti, exp))) => {
                let line = Line { jti, exp: exp.unwrap_or(self.latest), reason: self.reason };
                self.endless.set(self.endless.get() + u64::from(exp.is_none()));
                line.put(part);
            }
            Ok(None) => part.expired(),
            Err(why) => part.refuse(why),
        }
        Ok(true)
    }
}

impl RedisKeys<'_> {
    /// The `jti` that a line speaks of, and its `exp` if it has one; nothing if the key is gone.
    fn read(&self) -> Result<Option<(&str, Option<u64>)>, String> {
        let line = std::str::from_utf8(&self.line).map_err(|_| "it is not UTF-8".to_owned())?.trim_end_matches('\r');
        if line.starts_with('"') || line.starts_with("1) ") {
            return Err("it is quoted for people; let redis-cli write into a pipe or a file".to_owned());
        }
        let Some(value) = self.value else { return Ok(Some((self.pattern.jti(line)?, None))) };
        let (key, text) = line.rsplit_once(' ').ok_or("nothing stands behind the key, but --value was given")?;
        let jti = self.pattern.jti(key)?;
        let number = || text.parse::<u64>().map_err(|_| format!("{text:?} behind the key is no number of seconds"));
        let exp = match (text, value) {
            (GONE, _) => return Ok(None),
            (NO_END, _) => None,
            // What is left is cut to whole seconds; never too early.
            (_, KeyValue::Ttl) => match number()? {
                left @ ..=TTL_MAX => Some(self.now + left + 1),
                left => return Err(format!("a TTL of {left} s is none; did you mean --value exp, or is it PTTL?")),
            },
            (_, KeyValue::Exp) => match number()? {
                exp @ ..MILLISECONDS_FROM => Some(exp),
                exp => return Err(format!("exp {exp} is in milliseconds; use EXPIRETIME, not PEXPIRETIME")),
            },
        };
        Ok(Some((jti, exp)))
    }
}

/// How a key is made of a `jti`.
struct Pattern {
    before: String,
    after: String,
}

impl Pattern {
    fn new(text: &str) -> Result<Self, Failure> {
        match text.split_once("{jti}") {
            Some((before, after)) if !after.contains("{jti}") => {
                Ok(Self { before: before.to_owned(), after: after.to_owned() })
            }
            Some(_) | None => Err(Failure::plain(
                "bad-argument",
                format!("--key: {text:?} does not have {{jti}} in it once, as in 'denylist:{{jti}}'"),
            )
            .usage()),
        }
    }

    fn jti<'a>(&self, key: &'a str) -> Result<&'a str, String> {
        let jti = key.strip_prefix(self.before.as_str()).and_then(|rest| rest.strip_suffix(self.after.as_str()));
        match jti {
            Some("") => Err("the key has no jti in it".to_owned()),
            Some(jti) => Ok(jti),
            None => Err(format!("the key {key:?} is not like {}{{jti}}{}", self.before, self.after)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_in_seconds_or_rfc_3339_and_never_too_early() {
        for (text, seconds) in [
            ("1999999999", 1_999_999_999),
            ("0", 0),
            ("2033-05-18T03:33:20Z", 2_000_000_000),
            ("2033-05-18T05:33:20+02:00", 2_000_000_000),
            ("2033-05-18T03:33:19.001Z", 2_000_000_000),
        ] {
            assert_eq!(time(text), Ok(seconds), "{text}");
        }
        for (text, why) in [
            ("1999999999000", "milliseconds"),
            ("99999999999999999999999", "milliseconds"),
            ("", "no time"),
            ("soon", "no time"),
            ("-5", "no time"),
            ("1e9", "no time"),
            ("2033-05-18", "no time"),
            ("1969-12-31T23:59:59Z", "before 1970"),
        ] {
            assert!(time(text).is_err_and(|error| error.contains(why)), "{text}: {:?}", time(text));
        }
    }

    #[test]
    fn a_key_is_like_the_pattern_or_refused() {
        let pattern = Pattern::new("revoked:{jti}:v1").unwrap();
        assert_eq!(pattern.jti("revoked:a:b:v1"), Ok("a:b"));
        for key in ["revoked::v1", "revoked:a", "a:v1", "", "revoked:v1"] {
            assert!(pattern.jti(key).is_err(), "{key}");
        }
        assert_eq!(Pattern::new("{jti}").unwrap().jti("any"), Ok("any"));
        assert!(Pattern::new("denylist:").is_err() && Pattern::new("{jti}{jti}").is_err());
    }
}
