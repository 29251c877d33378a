//! What a device holds of its realm, and why, in one sentence and as JSON.

use revocast_core::{Base, Hold, Holding, Profile, RevocationSet};
use serde_json::{Value, json};

/// Says what is held, and what would answer better. `asked` is the profile that was asked for, if no budget was given.
pub fn words(holding: &Holding, asked: Option<Profile>) -> String {
    let Holding { profile, bytes, budget, base_bytes_max, offers, needed } = holding;
    let Some(profile) = profile else {
        return match (budget, needed) {
            (Some(budget), Some(needed)) => format!(
                "nothing: of this realm nothing fits into {} bytes; {} would do",
                grouped(*budget),
                grouped(*needed)
            ),
            _ => "nothing yet".to_owned(),
        };
    };
    let (name, bytes) = (profile.name(), grouped(*bytes));
    let Some(budget) = budget else {
        return match asked.filter(|asked| asked != profile) {
            Some(asked) => format!("{name}: {bytes} bytes; {} was asked for and cannot be had now", asked.name()),
            None => format!("{name}: {bytes} bytes, as was asked for"),
        };
    };
    let mut words = format!("{name}: {bytes} of {} bytes", grouped(*budget));
    let better = offers.iter().take_while(|(offered, _)| offered != profile).copied();
    let (fit, large): (Vec<_>, Vec<_>) = better.partition(|(_, bytes)| bytes <= base_bytes_max);
    if large.iter().any(|(_, bytes)| bytes <= budget) {
        // Or nobody would understand why it is not held.
        words.push_str(&format!(", {} of them for a base", grouped(*base_bytes_max)));
    }
    for (at, (profile, bytes)) in large.iter().enumerate() {
        let (before, verb) = if at == 0 { (";", " would take") } else { (",", "") };
        words.push_str(&format!("{before} {}{verb} {}", profile.name(), grouped(*bytes)));
    }
    if let Some((best, _)) = fit.first() {
        // Stored under a smaller budget, or later revocations were folded in.
        words.push_str(&format!("; {} fits, and can be held from the next epoch on", best.name()));
    }
    if let (true, true, None) = (fit.is_empty(), large.is_empty(), needed) {
        words.push_str("; nothing answers better");
    }
    if let Some(needed) = needed {
        words.push_str(&format!("; of the newest base nothing fits: {} would do", grouped(*needed)));
    }
    words
}

/// The same for programs, with what the base itself says.
pub fn value(holding: &Holding, set: &RevocationSet, asked: Option<Profile>) -> Value {
    let base = set.base();
    let room = holding.budget.map(|budget| Hold::Budget(budget).recent_entries_max(base.map_or(0, Base::size_bytes)));
    let offers = holding.offers.iter().map(|(profile, bytes)| json!({ "profile": profile.name(), "bytes": bytes }));
    json!({
        "profile": holding.profile.map(Profile::name),
        "bytes": holding.bytes,
        "budget": holding.budget,
        "base_bytes": base.map(Base::size_bytes),
        "base_bytes_max": holding.budget.map(|_| holding.base_bytes_max),
        "recent_entries_max": room,
        "offers": offers.collect::<Vec<_>>(),
        "needed": holding.needed,
        "covered_until": base.map(|base| base.covered_until().secs()).filter(|until| *until > 0),
        "false_positive_rate": base.and_then(Base::false_positive_rate),
        "folded_through": base.and_then(Base::folded_through).map(|through| through.0),
        "why": words(holding, asked),
    })
}

/// A number with its thousands apart.
pub fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn holding(profile: Option<Profile>, budget: Option<u64>, base_bytes_max: u64) -> Holding {
        let offers = vec![(Profile::Exact, 103_000), (Profile::List, 55_000), (Profile::Covered, 41_000)];
        Holding { profile, bytes: 41_208, budget, base_bytes_max, offers, needed: None }
    }

    #[test]
    fn the_sentence_says_what_is_held_and_what_the_better_would_take() {
        let held = |profile, budget, most| words(&holding(Some(profile), budget, most), Some(Profile::Covered));
        let small = held(Profile::Covered, Some(54_000), 42_000);
        assert_eq!(small, "covered: 41,208 of 54,000 bytes; exact would take 103,000, list 55,000");
        let near = held(Profile::Covered, Some(60_000), 47_000);
        assert_eq!(
            near,
            "covered: 41,208 of 60,000 bytes, 47,000 of them for a base; exact would take 103,000, list 55,000"
        );
        let large = held(Profile::Exact, Some(1_048_576), 900_000);
        assert_eq!(large, "exact: 41,208 of 1,048,576 bytes; nothing answers better");
        let later = held(Profile::Covered, Some(80_000), 65_000);
        assert_eq!(
            later,
            "covered: 41,208 of 80,000 bytes; exact would take 103,000; list fits, and can be held from the next epoch on"
        );
        assert_eq!(held(Profile::Covered, None, u64::MAX), "covered: 41,208 bytes, as was asked for");
        let without = held(Profile::Filter, None, u64::MAX);
        assert_eq!(without, "filter: 41,208 bytes; covered was asked for and cannot be had now");
    }

    #[test]
    fn the_sentence_says_what_would_do() {
        let nothing = Holding { needed: Some(65_537), ..holding(None, Some(8_192), 2_304) };
        assert_eq!(words(&nothing, None), "nothing: of this realm nothing fits into 8,192 bytes; 65,537 would do");
        assert_eq!(words(&holding(None, Some(8_192), 2_304), None), "nothing yet");
        let outgrown = Holding { needed: Some(65_537), ..holding(Some(Profile::Exact), Some(999_999), 900_000) };
        assert_eq!(
            words(&outgrown, None),
            "exact: 41,208 of 999,999 bytes; of the newest base nothing fits: 65,537 would do"
        );
    }

    #[test]
    fn thousands_stand_apart() {
        for (number, text) in [(0, "0"), (999, "999"), (1_000, "1,000"), (65_536, "65,536"), (1_048_576, "1,048,576")] {
            assert_eq!(grouped(number), text);
        }
    }
}
