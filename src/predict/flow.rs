//! Flows that share resources: how much each gets when all are fair.

/// One flow: what it takes of each resource, and the most that it can use.
#[derive(Debug, Clone, PartialEq)]
pub struct Flow {
    /// Index of a resource, and units of it for one unit of this flow; above 0. A resource may stand here twice: then
    /// the flow crosses it twice.
    pub uses: Vec<(usize, f64)>,
    /// The most that the flow can use on its own; `f64::INFINITY` where nothing but the resources limits it.
    pub cap: f64,
}

/// Rates of `flows` over resources of these capacities, max-min fair: no flow can get more without taking from one that
/// has no more than it (Bertsekas and Gallager, Data Networks, section 6.5.2; PCIe shares nearly so: rPCIeBench,
/// NSDI'24). Each direction of a link is a resource of its own.
///
/// # Panics
/// A flow names a resource that is not there.
#[must_use]
pub fn max_min(capacities: &[f64], flows: &[Flow]) -> Vec<f64> {
    let mut rates = vec![0.0_f64; flows.len()];
    let mut left = capacities.to_vec();
    let mut open: Vec<usize> = (0..flows.len()).collect();
    let mut level = 0.0_f64;
    while !open.is_empty() {
        let mut load = vec![0.0_f64; left.len()];
        for flow in &open {
            for (resource, weight) in &flows[*flow].uses {
                load[*resource] += weight;
            }
        }
        let by_resource = left.iter().zip(&load).filter(|(_, load)| 0.0 < **load).map(|(left, load)| left / load);
        let by_cap = open.iter().map(|flow| flows[*flow].cap - level);
        let grow = by_resource.chain(by_cap).fold(f64::INFINITY, f64::min).max(0.0);
        if !grow.is_finite() {
            open.iter().for_each(|flow| rates[*flow] = f64::INFINITY);
            break;
        }
        level += grow;
        for (left, load) in left.iter_mut().zip(&load) {
            *left -= grow * load;
        }
        let full: Vec<bool> = left.iter().zip(capacities).map(|(left, all)| *left <= all * 1e-12).collect();
        let before = open.len();
        open.retain(|flow| {
            let done = flows[*flow].cap <= level * (1.0 + 1e-12) || flows[*flow].uses.iter().any(|(at, _)| full[*at]);
            rates[*flow] = level;
            !done
        });
        if open.len() == before {
            break; // rounding left nothing to grow by
        }
    }
    rates
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flow(uses: &[(usize, f64)]) -> Flow {
        Flow { uses: uses.to_vec(), cap: f64::INFINITY }
    }

    #[test]
    fn three_flows_over_two_links_share_as_in_the_textbook() {
        let flows = [flow(&[(0, 1.0)]), flow(&[(0, 1.0), (1, 1.0)]), flow(&[(1, 1.0)])];
        assert_eq!(max_min(&[10.0, 4.0], &flows), [8.0, 2.0, 2.0]);
    }

    #[test]
    fn caps_and_double_crossings_count() {
        let capped = Flow { uses: vec![(0, 1.0)], cap: 1.0 };
        assert_eq!(max_min(&[10.0], &[capped, flow(&[(0, 2.0)])]), [1.0, 4.5]);
        assert_eq!(max_min(&[10.0], &[flow(&[(0, 1.0), (0, 1.0)])]), [5.0]);
        assert_eq!(max_min(&[0.0], &[flow(&[(0, 1.0)])]), [0.0]);
        assert_eq!(max_min(&[], &[flow(&[])]), [f64::INFINITY]);
    }

    proptest::proptest! {
        /// Nothing is over-used, and every flow is stopped by a full resource on which nobody has more, or by its cap.
        #[test]
        fn no_flow_can_get_more(
            capacities in proptest::collection::vec(0.5_f64..50.0, 1..6),
            picks in proptest::collection::vec((0_usize..6, 0_usize..6, 0.2_f64..3.0, 0.1_f64..60.0), 1..9),
        ) {
            let at = |index: usize| index % capacities.len();
            let flows: Vec<Flow> =
                picks.iter().map(|(a, b, w, cap)| Flow { uses: vec![(at(*a), *w), (at(*b), 1.0)], cap: *cap }).collect();
            let rates = max_min(&capacities, &flows);
            let used = |resource: usize| -> f64 {
                let share = |(flow, rate): (&Flow, &f64)| -> f64 {
                    flow.uses.iter().filter(|(at, _)| *at == resource).map(|(_, weight)| weight * rate).sum()
                };
                flows.iter().zip(&rates).map(share).sum()
            };
            for (resource, capacity) in capacities.iter().enumerate() {
                proptest::prop_assert!(used(resource) <= capacity * (1.0 + 1e-9));
            }
            for (flow, rate) in flows.iter().zip(&rates) {
                let stopped = flow.uses.iter().any(|(at, _)| {
                    let most = flows.iter().zip(&rates).filter(|(other, _)| other.uses.iter().any(|(o, _)| o == at));
                    capacities[*at] * (1.0 - 1e-9) <= used(*at)
                        && most.map(|(_, rate)| *rate).fold(0.0, f64::max) <= rate * (1.0 + 1e-9)
                });
                proptest::prop_assert!(stopped || flow.cap <= rate * (1.0 + 1e-9));
            }
        }
    }
}
