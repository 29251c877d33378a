//! `revocast inspect`: any sealed object or state file, in words.

use std::fmt::Write as _;
use std::path::Path;
use std::process::ExitCode;

use revocast_core::state::{Head, StoredImage};
use revocast_core::update::{Artifact, Keys, Role, Trust};
use revocast_core::{
    Digest, ExactList, Kind, Notice, Profile, PublicKey, Refusal, Sealed, UnixMillis, UnixTime, Width, wire,
};
use revocast_device::trust_from_file;
use serde_json::Value;

use crate::output::{Failure, Output, read_file};
use crate::state;

/// What is known about a file: name and value pairs, in the order of the format.
#[derive(Default)]
struct Findings(Vec<(String, Value)>);

impl Findings {
    fn add(&mut self, name: &str, value: impl Into<Value>) {
        self.0.push((name.to_owned(), value.into()));
    }

    /// Takes in findings about a part, under names that say so.
    fn add_part(&mut self, part: &str, findings: Self) {
        let named = |name: String| if name.starts_with(part) { name } else { format!("{part} {name}") };
        self.0.extend(findings.0.into_iter().map(|(name, value)| (named(name), value)));
    }

    fn words(&self) -> String {
        let mut words = String::new();
        for (name, value) in &self.0 {
            let text = match value {
                Value::String(text) => text.clone(),
                Value::Array(items) if !items.is_empty() => items.iter().fold(String::new(), |mut text, item| {
                    let item = item.as_str().map_or_else(|| item.to_string(), str::to_owned);
                    let _ = write!(text, "\n    {item}");
                    text
                }),
                other => other.to_string(),
            };
            let _ = writeln!(words, "{name:<22}{text}");
        }
        words.trim_end().to_owned()
    }

    fn value(self) -> Value {
        Value::Object(self.0.into_iter().map(|(name, value)| (name.replace(' ', "_"), value)).collect())
    }
}

pub fn run(output: Output, file: &Path, trust: Option<&Path>, keys: Option<&Path>) -> Result<ExitCode, Failure> {
    let trust = trust.map(|path| {
        trust_from_file(path)
            .map_err(|error| Failure::new("bad-trust", format!("{} cannot be used", path.display()), &error).usage())
    });
    let trust = trust.transpose()?;
    let mut findings = Findings::default();
    if file.is_dir() {
        let stored = state::newest(file)?;
        head(&mut findings, &stored.decoded, trust.as_ref())?;
        if let Some(base) = &stored.base {
            let keys = head_keys(&stored.decoded);
            let mut part = Findings::default();
            base_image(&mut part, base, keys.as_ref(), trust.is_some())?;
            findings.add_part("base", part);
        }
    } else {
        let bytes = read_file(file, "the file")?;
        match bytes.get(..4) {
            Some(magic) if magic.starts_with(b"RVC") => {
                // Where a device keeps one, its digest follows.
                let bytes = kept(&bytes).unwrap_or(&bytes);
                let keys = keys.map(|path| read_file(path, "the keys object")).transpose()?;
                object(&mut findings, bytes, trust.as_ref(), keys.as_deref())?;
            }
            Some(b"RVS1") => {
                let decoded = Head::decode(&bytes).map_err(|error| refused(&error))?;
                head(&mut findings, &decoded, trust.as_ref())?;
            }
            Some(b"RVB2") => base_image(&mut findings, &bytes, None, false)?,
            Some(b"RVT1") => own_token(&mut findings, &bytes)?,
            _ => {
                return Err(Failure::plain(
                    "not-ours",
                    format!("{} is neither a sealed object nor state", file.display()),
                ));
            }
        }
    }
    let words = findings.words();
    output.result(words, &findings.value());
    Ok(ExitCode::SUCCESS)
}

/// What stands in a slot of a device's state, if its digest holds.
fn kept(bytes: &[u8]) -> Option<&[u8]> {
    let (content, digest) = bytes.split_last_chunk::<32>()?;
    (Digest::of(content).0 == *digest).then_some(content)
}

/// A device's own token as it is kept; its text is nothing to print.
fn own_token(findings: &mut Findings, bytes: &[u8]) -> Result<(), Failure> {
    let damaged = |what| refused(&Refusal::DamagedState { what });
    let content = kept(bytes).ok_or_else(|| damaged("its digest does not match"))?;
    let number = |at: usize| content.get(at..at + 8).and_then(|bytes| Some(u64::from_le_bytes(bytes.try_into().ok()?)));
    let (Some(counter), Some(issued_at), Some(token)) = (number(4), number(12), content.get(52..)) else {
        return Err(damaged("shorter than a token's slot"));
    };
    findings.add("state", "token");
    findings.add("counter", counter);
    findings.add("last delivery at", UnixMillis::from_millis(issued_at).to_string());
    findings.add("token bytes", token.len());
    Ok(())
}

fn refused(refusal: &Refusal) -> Failure {
    Failure::plain(refusal.name(), refusal.to_string())
}

fn unreadable(error: wire::WireError) -> Failure {
    refused(&Refusal::from(error))
}

fn object(findings: &mut Findings, bytes: &[u8], trust: Option<&Trust>, keys: Option<&[u8]>) -> Result<(), Failure> {
    let sealed = Sealed::parse(bytes).map_err(|error| refused(&error))?;
    findings.add("kind", sealed.kind().name());
    findings.add("realm", sealed.realm().as_str());
    findings.add("bytes", bytes.len());
    findings.add("sha256", Digest::of(bytes).to_string());
    findings.add("signed by", sealed.signers().map(|id| id.to_string()).collect::<Vec<_>>());
    if let Some(trust) = trust {
        let publishers = keys.map(|keys| verified_keys(keys, &sealed, trust)).transpose()?;
        verify(findings, &sealed, trust, publishers.as_ref())?;
    }
    let body = sealed.unverified_body();
    match sealed.kind() {
        Kind::Keys => describe_keys(findings, &wire::decode_keys(body).map_err(unreadable)?),
        Kind::Manifest => {
            let manifest = wire::decode_manifest(body).map_err(unreadable)?;
            findings.add("term", manifest.term.0);
            findings.add("position", format!("{}.{}", manifest.epoch, manifest.sequence));
            findings.add("issued at", manifest.issued_at.to_string());
            findings.add("next update", manifest.next_update.secs());
            findings.add("horizon", manifest.horizon.secs());
            findings.add("index", manifest.index.to_string());
            let pieces = manifest
                .ladder
                .iter()
                .map(|piece| format!("({}, {}] {} bytes {}", piece.from, piece.to, piece.bytes, piece.digest));
            findings.add("ladder", pieces.collect::<Vec<_>>());
        }
        // An index does not say how wide its fingerprints are; the realm's keys do, and nearly all realms have 48 bits.
        Kind::Index => {
            let keys = keys.and_then(|keys| wire::decode_keys(Sealed::parse(keys).ok()?.unverified_body()).ok());
            let width = keys.map_or(Width::W48, |keys| keys.fingerprinter.width());
            findings.add("read as width", width.bits());
            describe_index(findings, &wire::decode_index(body).map_err(unreadable)?, width);
        }
        Kind::Chunk => {
            let chunk = wire::decode_chunk(body).map_err(unreadable)?;
            findings.add("term", chunk.term.0);
            findings.add("epoch", chunk.epoch.0);
            findings.add("artifact", chunk.artifact.name());
            findings.add("layer", format!("{:?}", chunk.layer).to_lowercase());
            findings.add("number", chunk.number);
            findings.add("content bytes", chunk.content.len());
        }
        Kind::Delta => delta(findings, body)?,
        Kind::Report => {
            let report = wire::decode_report(body).map_err(unreadable)?;
            findings.add("term", report.term.0);
            findings.add("position", report.position.to_string());
            findings.add("age seconds", report.age.map(|age| age.as_secs()));
            findings.add("memory bytes", report.memory_bytes);
            findings.add("refusals", report.refusals);
        }
        Kind::Ask => {
            let question = wire::decode_question(body, Width::W64).map_err(unreadable)?;
            findings.add("device", question.device.as_str());
            findings.add("fingerprint", format!("{:x}", question.fingerprint.bits()));
            findings.add("issued at", question.iat.map(UnixTime::secs));
            findings.add("expires at", question.exp.secs());
        }
        Kind::Answer => {
            let answer = wire::decode_answer(body, Width::W64).map_err(unreadable)?;
            findings.add("device", answer.device.as_str());
            findings.add("fingerprint", format!("{:x}", answer.fingerprint.bits()));
            findings.add("finding", answer.finding.name());
            findings.add("term", answer.term.0);
            findings.add("sequence", answer.sequence.0);
            findings.add("issued at", answer.issued_at.to_string());
            findings.add("horizon", answer.horizon.secs());
        }
        Kind::Renew => {
            let renew = wire::decode_renew(body).map_err(unreadable)?;
            findings.add("device", renew.device.as_str());
            findings.add("counter", renew.counter);
            findings.add("at", renew.at.to_string());
        }
        Kind::Delivery => {
            let delivery = wire::decode_delivery(body).map_err(unreadable)?;
            findings.add("device", delivery.device.as_str());
            findings.add("issued at", delivery.issued_at.to_string());
            findings.add("answers a request", delivery.nonce.is_some());
            findings.add("enclosed", delivery.enclosed);
            findings.add("content bytes", delivery.content.len());
            if !delivery.enclosed {
                match wire::decode_notice(&delivery.content).map_err(unreadable)? {
                    Notice::Token { token } => findings.add("token bytes", token.len()),
                    Notice::Refused { why } => findings.add("no token", why.name()),
                }
            }
        }
        Kind::IssuerKeys => {
            let keys = wire::decode_issuer_keys(body).map_err(unreadable)?;
            findings.add("issued at", keys.issued_at.to_string());
            findings.add("jwks", String::from_utf8_lossy(&keys.jwks).into_owned());
        }
    }
    Ok(())
}

/// A delta does not say how wide its fingerprints are; the realm's keys do. Only one width decodes.
fn delta(findings: &mut Findings, body: &[u8]) -> Result<(), Failure> {
    let widths = [Width::W48, Width::W64, Width::W40];
    let Some((width, delta)) =
        widths.into_iter().find_map(|width| Some((width, wire::decode_delta(body, width).ok()?)))
    else {
        return Err(unreadable(wire::WireError::Range { field: "a coded list of fingerprints" }));
    };
    findings.add("term", delta.term.0);
    findings.add("range", format!("({}, {}]", delta.from, delta.to));
    findings.add("issued at", delta.issued_at.to_string());
    findings.add("horizon", delta.horizon.secs());
    findings.add("read as width", width.bits());
    findings.add("revoked", delta.revoked.len());
    findings.add("reinstated", delta.reinstated.len());
    findings.add("cutoffs", delta.cutoffs.len());
    findings.add("lifts", delta.lifts.len());
    Ok(())
}

fn describe_keys(findings: &mut Findings, keys: &Keys) {
    findings.add("version", keys.version);
    findings.add("issued at", keys.issued_at.to_string());
    findings.add("not after", keys.not_after.secs());
    findings.add("issuer", &*keys.issuer);
    findings.add("threshold", keys.threshold);
    findings.add("roots", keys.roots.iter().map(|key| key.id().to_string()).collect::<Vec<_>>());
    let publishers = keys.publishers.iter().map(|publisher| {
        let role = Role::from_number(publisher.role)
            .map_or_else(|| "unknown".to_owned(), |role| format!("{role:?}").to_lowercase());
        format!("{} {role}, until {}", publisher.key.id(), publisher.not_after)
    });
    findings.add("publishers", publishers.collect::<Vec<_>>());
    findings.add("function", format!("{:?}", keys.fingerprinter.function()).to_lowercase());
    findings.add("width", keys.fingerprinter.width().bits());
    findings.add("leeway", keys.leeway);
}

fn describe_index(findings: &mut Findings, index: &revocast_core::Index, width: Width) {
    findings.add("term", index.term.0);
    findings.add("base", format!("{}.{}", index.epoch, index.sequence));
    findings.add("issued at", index.issued_at.to_string());
    findings.add("horizon", index.horizon.secs());
    findings.add(
        "filter",
        format!("{} blocks of 64 bytes, {} probes in each of two lines", index.filter.blocks(), index.filter.probes()),
    );
    findings.add("chunk bytes", index.chunk_bytes);
    let artifacts = index.artifacts.iter().map(|summary| {
        let chunks = summary.chunk_count(index.chunk_bytes);
        format!("{}: {} entries, {} bytes in {chunks} chunks", summary.artifact.name(), summary.entries, summary.bytes)
    });
    findings.add("artifacts", artifacts.collect::<Vec<_>>());
    if index.covered_until.secs() > 0 {
        findings.add("covered until", index.covered_until.secs());
    }
    let revoked = index.artifacts.iter().find(|summary| summary.artifact == Artifact::List);
    let revoked = revoked.map_or(0, |summary| summary.entries);
    let rate = index.filter.false_positive_rate(revoked);
    findings.add("filter rate", format!("{rate:.2e}"));
    let sizes = Profile::BEST_FIRST.into_iter().filter_map(|profile| {
        let bytes = profile.size_bytes(index, width)?;
        let bits = bytes as f64 * 8.0 / revoked.max(1) as f64;
        Some(format!("{}: {bytes} bytes, {bits:.1} bits a revocation", profile.name()))
    });
    findings.add("profiles", sizes.collect::<Vec<_>>());
    findings.add("why this filter", why(index, width, revoked));
}

/// Why the filter is what it is, as far as the index tells.
fn why(index: &revocast_core::Index, width: Width, revoked: u64) -> String {
    let bits =
        |profile: Profile| profile.size_bytes(index, width).map(|bytes| bytes as f64 * 8.0 / revoked.max(1) as f64);
    match (bits(Profile::Covered), ExactList::<Vec<u8>>::size_bytes_of(revoked, width)) {
        (Some(covered), Some(list)) => {
            let list = list as f64 * 8.0 / revoked.max(1) as f64;
            format!("chosen or pinned for {covered:.1} bits a revocation with its exceptions; the list takes {list:.1}")
        }
        (None, _) | (_, None) => {
            "no exceptions: the good tokens are not known, or the list is smaller than they would be".to_owned()
        }
    }
}

fn head(findings: &mut Findings, head: &Head, trust: Option<&Trust>) -> Result<(), Failure> {
    findings.add("kind", "state");
    findings.add("realm", head.realm.as_str());
    findings.add("revision", head.revision);
    findings.add("profile", head.profile.name());
    let position = head
        .position
        .map_or_else(|| "none yet".to_owned(), |(term, sequence)| format!("term {term}, sequence {sequence}"));
    findings.add("position", position);
    findings.add("horizon", head.horizon.secs());
    findings.add("floor", head.floor.to_string());
    findings.add("current as of", head.proof.map_or_else(|| "never".to_owned(), |proof| proof.to_string()));
    findings.add("recent", head.recent.len());
    findings.add("cutoffs", head.cutoffs.len());
    findings.add(
        "early ranges",
        head.early.iter().map(|range| format!("({}, {}]", range.from, range.to)).collect::<Vec<_>>(),
    );
    findings.add("base image", head.base.map_or_else(|| "none".to_owned(), |digest| digest.to_string()));
    if let Some(trust) = trust {
        let sealed = Sealed::expect(&head.keys, &head.realm, Kind::Keys).map_err(|error| refused(&error))?;
        let keys = verified_keys(&head.keys, &sealed, trust)?;
        if !head.manifest.is_empty() {
            let manifest =
                Sealed::expect(&head.manifest, &head.realm, Kind::Manifest).map_err(|error| refused(&error))?;
            verify(findings, &manifest, trust, Some(&keys))?;
        }
    }
    Ok(())
}

fn head_keys(head: &Head) -> Option<Keys> {
    let sealed = Sealed::expect(&head.keys, &head.realm, Kind::Keys).ok()?;
    wire::decode_keys(sealed.unverified_body()).ok()
}

fn base_image(findings: &mut Findings, bytes: &[u8], keys: Option<&Keys>, check: bool) -> Result<(), Failure> {
    let image = StoredImage::decode(bytes).map_err(|error| refused(&error))?;
    let sealed = Sealed::parse(image.index).map_err(|error| refused(&error))?;
    if let (Some(keys), true) = (keys, check) {
        let publishers: Vec<PublicKey> = keys.publishers.iter().map(|publisher| publisher.key).collect();
        sealed.by_threshold(&publishers, 1).map_err(|error| refused(&error))?;
    }
    let index = wire::decode_index(sealed.unverified_body()).map_err(unreadable)?;
    findings.add("base bytes", bytes.len());
    findings.add("profile", image.profile.name());
    if let Some(through) = image.folded_through {
        findings.add("folded in", format!("later revocations up to sequence {through}"));
    }
    describe_index(findings, &index, keys.map_or(Width::W48, |keys| keys.fingerprinter.width()));
    findings.add("filter held", format!("{} bytes", image.filter.len()));
    findings.add("list held", format!("{} bytes", image.list.len()));
    Ok(())
}

/// The keys object, if the pinned roots signed it.
fn verified_keys(bytes: &[u8], object: &Sealed<'_>, trust: &Trust) -> Result<Keys, Failure> {
    let sealed = Sealed::expect(bytes, &object.realm(), Kind::Keys).map_err(|error| refused(&error))?;
    let body = sealed.by_threshold(&trust.roots, trust.threshold).map_err(|error| refused(&error))?;
    Ok(body.try_map(wire::decode_keys).map_err(unreadable)?.into_inner())
}

fn verify(findings: &mut Findings, sealed: &Sealed<'_>, trust: &Trust, keys: Option<&Keys>) -> Result<(), Failure> {
    match (sealed.kind(), keys) {
        (Kind::Keys, _) => {
            sealed.by_threshold(&trust.roots, trust.threshold).map_err(|error| refused(&error))?;
            findings.add("verified", "by the pinned roots");
        }
        (Kind::Chunk, _) => {
            findings.add("verified", "no: this kind is unsigned; an index names chunks by digest");
        }
        (Kind::Report | Kind::Ask | Kind::Renew, _) => {
            let signers: Vec<String> = sealed.signers().map(|key| key.to_string()).collect();
            let told = match signers.as_slice() {
                [] => "no: it is unsigned".to_owned(),
                signers => {
                    format!("no: a device signs it, and its server knows the key; this one says {}", signers.join(", "))
                }
            };
            findings.add("verified", told);
        }
        (Kind::Manifest | Kind::Index | Kind::Delta | Kind::Answer | Kind::Delivery | Kind::IssuerKeys, Some(keys)) => {
            let publishers: Vec<PublicKey> = keys.publishers.iter().map(|publisher| publisher.key).collect();
            sealed.by_threshold(&publishers, 1).map_err(|error| refused(&error))?;
            let until =
                keys.publishers.iter().map(|publisher| publisher.not_after).max().unwrap_or(UnixTime::default());
            findings.add("verified", format!("by a publisher key that the pinned roots vouch for until {until}"));
        }
        (Kind::Manifest | Kind::Index | Kind::Delta | Kind::Answer | Kind::Delivery | Kind::IssuerKeys, None) => {
            return Err(Failure::plain(
                "no-keys",
                "this kind is signed by a publisher key, which only the keys object names",
            )
            .help("name the sealed keys object of the realm with --keys FILE")
            .usage());
        }
    }
    Ok(())
}
