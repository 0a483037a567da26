//! What tests need that break the cluster on purpose: the operator, its journal's volume, and processes of the node.
//! Knows nothing of what a run should do meanwhile.

pub mod effects;
pub mod node;
pub mod operator;

/// Random numbers that a printed seed brings back (splitmix64).
pub struct Dice(u64);

impl Dice {
    /// From `BELAY_CHAOS_SEED`, or a seed of its own. The seed is printed: a failure is replayed by it.
    #[must_use]
    pub fn new() -> Self {
        let given = std::env::var("BELAY_CHAOS_SEED").ok().and_then(|seed| seed.parse().ok());
        let seed = given.unwrap_or_else(|| std::process::id().into());
        println!("BELAY_CHAOS_SEED={seed}");
        Self(seed)
    }

    pub fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        usize::try_from(mixed >> 33).unwrap_or_default() % bound.max(1)
    }
}

impl Default for Dice {
    fn default() -> Self {
        Self::new()
    }
}
