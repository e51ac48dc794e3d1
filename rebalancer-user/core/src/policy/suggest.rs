//! What to write instead of an unknown word.

/// Fields and words of former versions, and what they are called now.
const FORMER: [(&str, &str); 6] = [
    ("sessionState", "onReconnect"),
    ("settle", "stabilizationWindow"),
    ("Spare", "Skip"),
    ("Unknown", "Detect"),
    ("Keeps", "Safe"),
    ("Loses", "LosesState"),
];

/// What a word of a former version is called now, if it is one of `known`.
pub(super) fn renamed(word: &str, known: &[&str]) -> Option<&'static str> {
    let (_, new) = FORMER.iter().find(|(old, _)| *old == word)?;
    known.contains(new).then_some(new)
}

/// The one of `known` that `word` was most likely meant to be.
pub(super) fn nearest<'a>(word: &str, known: &[&'a str]) -> Option<&'a str> {
    const LONGEST: usize = 40;
    if word.len() > LONGEST {
        return None;
    }
    let lower = word.to_lowercase();
    known
        .iter()
        .map(|known| (distance(&lower, &known.to_lowercase()), *known))
        .filter(|(distance, known)| *distance <= known.len() / 3)
        .min()
        .map(|(_, known)| known)
}

/// Edits (insert, remove, replace) that make `b` of `a`.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, to) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(from != *to);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_word_is_one_that_looks_like_it() {
        let known = ["maxAge", "maxBytes", "maxRate"];
        for (word, meant) in [
            ("maxage", Some("maxAge")),
            ("max_age", Some("maxAge")),
            ("maxBites", Some("maxBytes")),
            ("age", None),
            ("", None),
        ] {
            assert_eq!(nearest(word, &known), meant, "{word}");
        }
        assert_eq!(distance("kitten", "sitting"), 3);
    }
}
