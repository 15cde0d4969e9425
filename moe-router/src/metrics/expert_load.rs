//! How even a load is, and the load of devices under a placement of experts.

use moe_core::RoutingPlan;

/// Choices of each expert, or rows of each device, added up over batches, and how even they are.
///
/// ```
/// use moe_router::metrics::ExpertLoad;
///
/// let load = ExpertLoad::from_counts([4, 2, 1, 1]);
/// assert_eq!(load.max_violation(), 1.0);
/// let devices = load.on_devices(&[0, 0, 1, 1]);
/// assert_eq!((devices.counts(), devices.max_over_mean()), (&[6, 2][..], 1.5));
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ExpertLoad {
    counts: Vec<u64>,
}

impl ExpertLoad {
    /// A load that is known, such as the sum over all ranks.
    pub fn from_counts(counts: impl Into<Vec<u64>>) -> Self {
        Self { counts: counts.into() }
    }

    /// Adds the choices of a plan: those asked for, refused ones included.
    ///
    /// # Panics
    ///
    /// If the plan is of another number of experts than those before.
    #[track_caller]
    pub fn add(&mut self, plan: &RoutingPlan) {
        self.resize(plan.experts());
        for t in 0..plan.tokens() {
            plan.requested(t).for_each(|e| self.counts[e] += 1);
        }
    }

    /// Adds the tokens that each device receives from a plan: a token counts once for a device, however many of its experts are
    /// there, and only where it was granted one. Expert e is on device `device_of[e]`, of `devices`.
    ///
    /// This is what is sent, and [`on_devices`](Self::on_devices) of [`add`](Self::add) what is asked to be worked on.
    ///
    /// # Panics
    ///
    /// If there is not one device an expert, below `devices`, or these are not those before.
    #[track_caller]
    pub fn add_received(&mut self, plan: &RoutingPlan, device_of: &[usize], devices: usize) {
        assert_eq!(device_of.len(), plan.experts(), "a device for each expert");
        self.resize(devices);
        let mut last = vec![usize::MAX; devices];
        for t in 0..plan.tokens() {
            for choice in plan.choices(t) {
                let device = device_of[choice.expert];
                if last[device] != t {
                    last[device] = t;
                    self.counts[device] += 1;
                }
            }
        }
    }

    #[track_caller]
    fn resize(&mut self, places: usize) {
        if self.counts.is_empty() {
            self.counts.resize(places, 0);
        }
        assert_eq!(self.counts.len(), places, "loads of one number of experts");
    }

    /// The load of devices 0, 1, …, the greatest in `device_of`, expert e being on device `device_of[e]`.
    ///
    /// # Panics
    ///
    /// If there is not one device an expert.
    #[track_caller]
    pub fn on_devices(&self, device_of: &[usize]) -> Self {
        assert_eq!(device_of.len(), self.counts.len(), "a device for each expert");
        let mut counts = vec![0; device_of.iter().max().map_or(0, |d| d + 1)];
        device_of.iter().zip(&self.counts).for_each(|(&d, n)| counts[d] += n);
        Self { counts }
    }

    /// The count of each expert, or device.
    pub fn counts(&self) -> &[u64] {
        &self.counts
    }

    /// Adds tokens of one expert.
    ///
    /// # Panics
    ///
    /// If there is no such expert.
    #[track_caller]
    pub fn add_tokens(&mut self, expert: usize, tokens: u64) {
        self.counts[expert] += tokens;
    }

    fn total(&self) -> f64 {
        self.counts.iter().map(|&n| n as f64).sum()
    }

    /// The greatest load over the mean: 1 is even, the number of experts is one with all. 0 without load.
    pub fn max_over_mean(&self) -> f64 {
        match self.total() {
            0.0 => 0.0,
            total => {
                let most = self.counts.iter().copied().max().unwrap_or(0);
                most as f64 * self.counts.len() as f64 / total
            }
        }
    }

    /// Population standard deviation of the load over its mean: 0 is even, `√(E - 1)` one expert with all. 0 without load.
    pub fn cv(&self) -> f64 {
        let mean = self.total() / self.counts.len() as f64;
        if mean.is_nan() || mean == 0.0 {
            return 0.0;
        }
        let squares = self.counts.iter().map(|&n| (n as f64 - mean).powi(2)).sum::<f64>();
        (squares / self.counts.len() as f64).sqrt() / mean
    }

    /// MaxVio, `max / mean - 1` (loss-free balancing, [2408.15664], section 4.1): 0 is even. 0 without load. Over one batch it is
    /// the paper's MaxVio_batch, over all MaxVio_global.
    ///
    /// [2408.15664]: https://arxiv.org/abs/2408.15664
    pub fn max_violation(&self) -> f64 {
        (self.max_over_mean() - 1.0).max(0.0)
    }

    /// The Gini coefficient, `Σᵢⱼ |nᵢ - nⱼ| / (2 E Σ n)`: 0 is even, `1 - 1/E` one expert with all. 0 without load.
    pub fn gini(&self) -> f64 {
        let (total, mut sorted) = (self.total(), self.counts.clone());
        if total == 0.0 {
            return 0.0;
        }
        sorted.sort_unstable();
        let places = sorted.len() as f64;
        // In ascending order the i-th, from 1, is above i - 1 others and below E - i.
        let weighted = |(i, &n): (usize, &u64)| (2.0 * (i as f64 + 1.0) - places - 1.0) * n as f64;
        sorted.iter().enumerate().map(weighted).sum::<f64>() / (places * total)
    }

    /// `exp(H) / E`, H the entropy of the shares in nats: the part of the experts that would do as much if it were even. 1 is
    /// even, `1/E` one expert with all. 0 without load.
    pub fn effective_share(&self) -> f64 {
        let total = self.total();
        if total == 0.0 {
            return 0.0;
        }
        let shares = self.counts.iter().filter(|&&n| n > 0).map(|&n| n as f64 / total);
        let nats: f64 = shares.map(|share| -share * libm::log(share)).sum();
        libm::exp(nats) / self.counts.len() as f64
    }
}
