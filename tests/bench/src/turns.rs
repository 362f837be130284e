//! Subjects take turns: what disturbs the machine for a while disturbs all of them.

use anyhow::Result;

/// `rounds` measurements of each subject, in turn, each round beginning with another one. Gives the samples by subject.
pub(crate) fn take<S, T>(
    subjects: &[S],
    rounds: usize,
    mut measure: impl FnMut(&S) -> Result<T>,
) -> Result<Vec<Vec<T>>> {
    let mut samples: Vec<Vec<T>> = subjects.iter().map(|_| Vec::new()).collect();
    for round in 0..rounds {
        for offset in 0..subjects.len() {
            let which = (round + offset) % subjects.len();
            samples[which].push(measure(&subjects[which])?);
        }
    }
    Ok(samples)
}

/// One figure of each measurement.
pub(crate) fn each<T>(samples: &[T], figure: impl Fn(&T) -> f64) -> Vec<f64> {
    samples.iter().map(figure).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_subject_goes_first_in_turn() {
        let mut order = String::new();
        let samples = take(&["a", "b"], 2, |name| {
            order.push_str(name);
            Ok(order.len())
        });
        assert_eq!(order, "abba");
        assert_eq!(samples.unwrap(), [[1, 4], [2, 3]]);
    }
}
