//! Prints what a revocation costs in bits, and how often the filters are wrong.
//!
//! `cargo bench -p revocast-benches --bench sizes`

use bloomfilter::Bloom;
use fastbloom::BloomFilter;
use revocast_benches::{COUNTS, Keys, filter, fingerprinter, fingerprints, forge, present_keys, replica};
use revocast_core::{ExactList, Jti, Membership, Width, rice};

/// Questions about absent keys for each rate: enough for a thousand false positives at 1e-4.
const QUESTIONS: usize = 10_000_000;

fn main() {
    let absent = Keys::new(4, QUESTIONS);
    let absent = absent.texts();
    let fingerprinter = fingerprinter();
    println!("{:<12} {:<22} {:>10} {:>12} {:>9}", "entries", "structure", "bits/entry", "measured", "of target");
    for (name, count) in COUNTS {
        let keys = present_keys(count);
        let sorted = fingerprints(&keys);
        let entries = sorted.len() as f64;
        for rate in [1e-2, 1e-3, 1e-4] {
            let ours = filter(&sorted, rate);
            let measured = share(&absent, |text| {
                Jti::new(text).is_ok_and(|jti| ours.query(fingerprinter.fingerprint(jti)) == Membership::Possible)
            });
            let params = ours.params();
            let structure = format!("filter {rate:e}, 2 x {}", params.probes());
            row(name, &structure, params.size_bytes() as f64 * 8.0 / entries, Some((measured, rate)));

            let mut bloom = Bloom::<str>::new_for_fp_rate(count, rate).expect("a rate within reach");
            keys.texts().into_iter().for_each(|text| bloom.set(text));
            let bits = Bloom::<str>::compute_bitmap_size(count, rate) as f64 * 8.0 / entries;
            row(name, &format!("bloomfilter {rate:e}"), bits, Some((share(&absent, |text| bloom.check(text)), rate)));

            let mut fast = BloomFilter::with_false_pos(rate).expected_items(count);
            for text in keys.texts() {
                fast.insert(text);
            }
            let bits = fast.num_bits() as f64 / entries;
            row(name, &format!("fastbloom {rate:e}"), bits, Some((share(&absent, |text| fast.contains(text)), rate)));
        }
        let list = ExactList::from_sorted(&sorted, Width::W48).expect("sorted fingerprints");
        row(name, "list 48, in memory", list.size_bytes() as f64 * 8.0 / entries, None);
        let cut = ExactList::<Vec<u8>>::size_bytes_of(sorted.len() as u64, Width::W40).expect("within limits");
        row(name, "list profile, 40 bits", cut as f64 * 8.0 / entries, None);
        let held = replica(&forge(), &keys);
        let exact = held.set().base().expect("a base").size_bytes();
        row(name, "exact profile", exact as f64 * 8.0 / entries, None);
        let code = rice::encode(&sorted, Width::W48).expect("sorted fingerprints");
        row(name, "list 48, as it travels", code.len() as f64 * 8.0 / entries, None);
    }
    let thousand = rice::encode(&fingerprints(&present_keys(1_000)), Width::W48).expect("sorted fingerprints");
    println!("\na delta's 1,000 fingerprints: {} bytes", thousand.len());
}

/// The share of questions that are answered with yes.
fn share(texts: &[&str], ask: impl Fn(&str) -> bool) -> f64 {
    texts.iter().filter(|text| ask(text)).count() as f64 / texts.len() as f64
}

fn row(entries: &str, structure: &str, bits: f64, rate: Option<(f64, f64)>) {
    match rate {
        Some((measured, target)) => {
            println!("{entries:<12} {structure:<22} {bits:>10.2} {measured:>12.6} {:>9.3}", measured / target);
        }
        None => println!("{entries:<12} {structure:<22} {bits:>10.2}"),
    }
}
