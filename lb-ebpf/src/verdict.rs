//! What the stages decide; the entries translate it and count.

use lb_common::reason::Reason;

/// A packet's fate. `Err` of a stage's result is a drop with its reason.
#[derive(Clone, Copy)]
pub enum Verdict {
    /// Not ours: to the kernel, untouched and uncounted.
    NotOurs,
    /// To the kernel.
    Pass(Reason),
    /// Out again by the interface it came from.
    Transmit(Reason),
    /// Out by another interface.
    Redirect(Reason, u32),
}

/// What every stage returns.
pub type Outcome = Result<Verdict, Reason>;

/// An [`Outcome`] in one register. BPF functions return nothing wider, and stages are functions of
/// their own where they would not fit together into the 512 bytes of stack.
#[derive(Clone, Copy, Eq, PartialEq)]
#[repr(transparent)]
pub struct Fate(u64);

/// What the upper bits of a [`Fate`] say; the lower ones are the reason, or the interface.
mod action {
    pub const NOT_OURS: u64 = 0;
    pub const PASS: u64 = 1;
    pub const TRANSMIT: u64 = 2;
    pub const REDIRECT: u64 = 3;
    pub const DROP: u64 = 4;
    // From here on the packet was put aside.
    pub const UNDECIDED: u64 = 5;
    pub const PORTLESS: u64 = 6;
    pub const NO_FRONTEND: u64 = 7;
    pub const NO_BACKEND: u64 = 8;
}

impl Fate {
    pub const NOT_OURS: Self = Self::new(action::NOT_OURS, 0, 0);

    /// Put aside for [`crate::chain::settle`]. The entry acts on none of these four.
    pub const UNDECIDED: Self = Self::new(action::UNDECIDED, 0, 0);
    /// Put aside: neither TCP nor UDP.
    pub const PORTLESS: Self = Self::new(action::PORTLESS, 0, 0);
    /// Put aside, to be refused: the VIP has no such frontend.
    pub const NO_FRONTEND: Self = Self::new(action::NO_FRONTEND, 0, 0);
    /// Put aside, to be refused.
    pub const NO_BACKEND: Self = Self::new(action::NO_BACKEND, 0, 0);

    /// A drop by the reason's number.
    #[inline(always)]
    pub fn drop(reason: u32) -> Self {
        Self::new(action::DROP, reason, 0)
    }

    /// Nothing is left to be decided.
    #[inline(always)]
    pub fn is_final(self) -> bool {
        self.0 >> 56 < action::UNDECIDED
    }

    #[inline(always)]
    const fn new(action: u64, reason: u32, ifindex: u32) -> Self {
        Self(action << 56 | (reason as u64) << 32 | ifindex as u64)
    }

    #[inline(always)]
    pub fn of(outcome: Outcome) -> Self {
        match outcome {
            Ok(Verdict::NotOurs) => Self::NOT_OURS,
            Ok(Verdict::Pass(reason)) => Self::new(action::PASS, reason as u32, 0),
            Ok(Verdict::Transmit(reason)) => Self::new(action::TRANSMIT, reason as u32, 0),
            Ok(Verdict::Redirect(reason, ifindex)) => {
                Self::new(action::REDIRECT, reason as u32, ifindex)
            }
            Err(reason) => Self::new(action::DROP, reason as u32, 0),
        }
    }

    /// For what must not reach the kernel: a drop in place of "not ours".
    #[inline(always)]
    pub fn or_dropped(self, reason: Reason) -> Self {
        if self == Self::NOT_OURS { Self::of(Err(reason)) } else { self }
    }

    /// The reason's number; none for what is not ours.
    #[inline(always)]
    pub fn reason(self) -> Option<u32> {
        (self != Self::NOT_OURS).then_some((self.0 >> 32) as u32 & 0xff_ffff)
    }

    /// Gives the packet its fate: `redirect` sends it to an interface.
    #[inline(always)]
    pub fn act(self, redirect: impl FnOnce(u32) -> u32) -> u32 {
        use aya_ebpf::bindings::xdp_action::{XDP_DROP, XDP_PASS, XDP_TX};
        match self.0 >> 56 {
            action::NOT_OURS | action::PASS => XDP_PASS,
            action::TRANSMIT => XDP_TX,
            action::REDIRECT => redirect(self.0 as u32),
            _ => XDP_DROP,
        }
    }
}
