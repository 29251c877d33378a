//! One question in a plain loop, best of nine rounds: what `check` measures, without a harness around it.
//!
//! `cargo bench -p revocast-benches --bench plain`

use std::collections::HashSet;
use std::hint::black_box;
use std::time::Instant;

use bloomfilter::Bloom;
use fastbloom::BloomFilter;
use revocast_benches::{
    Asked, COUNTS, Exact, Keys, RATE, absent_keys, fingerprints, forge, present_keys, replica_with,
};
use revocast_core::Profile;

/// The best of these counts: whatever else the machine does only adds.
const ROUNDS: usize = 9;

fn main() {
    let absent = absent_keys();
    let absent = absent.texts();
    for (name, count) in COUNTS {
        let present = present_keys(count);
        let asked = device_of(Profile::Exact, &present);
        let mut bloomfilter = Bloom::<str>::new_for_fp_rate(count, RATE).expect("a rate within reach");
        let mut fastbloom = BloomFilter::with_false_pos(RATE).expected_items(count);
        for text in present.texts() {
            bloomfilter.set(text);
            fastbloom.insert(text);
        }
        let set: HashSet<String> = present.texts().into_iter().map(str::to_owned).collect();
        let ours = time(&absent, |text| asked.is_revoked(text));
        let parts = Exact::new(&fingerprints(&present));
        let (filter, list) = (time(&absent, |text| parts.maybe(text)), time(&absent, |text| parts.listed(text)));
        let (both, device) = (time(&absent, |text| parts.contains(text)), device_of(Profile::Filter, &present));
        let filter_profile = time(&absent, |text| device.is_revoked(text));
        println!(
            "{name}: Checker::check {ours:.1} ns in the exact profile, {filter_profile:.1} ns in the filter profile"
        );
        println!(
            "{name}: {:.2} times the filter profile, {:.2} times a bare filter",
            ours / filter_profile,
            ours / filter
        );
        println!("{name}: bare filter (1e-2) {filter:.1} ns, with its list {both:.1} ns, bare list {list:.1} ns");
        for (opponent, theirs) in [
            ("bloomfilter", time(&absent, |text| bloomfilter.check(text))),
            ("fastbloom", time(&absent, |text| fastbloom.contains(text))),
            ("HashSet<String>", time(&absent, |text| set.contains(text))),
        ] {
            println!("{name}: {opponent} {theirs:.1} ns, {:.2} times ours", theirs / ours);
        }
    }
}

fn device_of(profile: Profile, keys: &Keys) -> Asked {
    Asked::new(&replica_with(&forge(), keys, profile))
}

/// Nanoseconds a question takes.
fn time(keys: &[&str], question: impl Fn(&str) -> bool) -> f64 {
    let mut best = f64::MAX;
    for _ in 0..ROUNDS {
        let mut found = 0_u64;
        let started = Instant::now();
        for key in keys {
            found += u64::from(question(black_box(key)));
        }
        black_box(found);
        best = best.min(started.elapsed().as_nanos() as f64 / keys.len() as f64);
    }
    best
}
