//! The only file that touches packet memory. Everything else reads and writes headers by
//! [`View::at`] and [`View::at_mut`], which check bounds and hand out a reference that cannot
//! outlive a change of the frame's size.

use core::{
    arch::asm,
    marker::PhantomData,
    mem::{offset_of, size_of},
};

use aya_ebpf::{
    EbpfContext,
    bindings::{__sk_buff, xdp_md},
    helpers::generated::{
        bpf_csum_diff, bpf_l3_csum_replace, bpf_l4_csum_replace, bpf_redirect, bpf_skb_pull_data,
        bpf_skb_store_bytes, bpf_xdp_adjust_head, bpf_xdp_adjust_tail, bpf_xdp_get_buff_len,
    },
    programs::{TcContext, XdpContext},
};
use lb_common::{net::Addr, reason::Reason, wire::Wire};

/// No header that is read starts further in: what the verifier needs to hear.
const MAX_OFFSET: usize = 511;

/// Start and end of the packet, from a context. The fields are 32 bits wide and become pointers of
/// 64 as they are loaded, which the verifier follows; were they words to the compiler, it would
/// widen them again after a spill, and the verifier would see a number. Loaded anew each time: a
/// resize moves both.
macro_rules! bounds {
    ($ctx:expr, $type:ty) => {{
        let (start, end): (usize, usize);
        asm!(
            "{start} = *(u32 *)({ctx} + {data})",
            "{end} = *(u32 *)({ctx} + {data_end})",
            ctx = in(reg) $ctx,
            start = out(reg) start,
            end = lateout(reg) end,
            data = const offset_of!($type, data),
            data_end = const offset_of!($type, data_end),
            options(readonly, nostack),
        );
        (start, end)
    }};
}

/// The linear part of a packet.
pub struct View<'f> {
    start: usize,
    end: usize,
    frame: PhantomData<&'f mut [u8]>,
}

impl View<'_> {
    /// The header at `offset`, or [`Reason::Truncated`].
    #[inline(always)]
    pub fn at<T: Wire>(&self, offset: usize) -> Result<&T, Reason> {
        let pos = self.check(offset, size_of::<T>())?;
        // SAFETY: `check` found all of `T` inside the packet; `Wire` takes any bytes. Headers are
        // packed, and every machine that weir runs on reads words at any address.
        Ok(unsafe { &*(pos as *const T) })
    }

    /// As [`Self::at`], to be written.
    #[inline(always)]
    pub fn at_mut<T: Wire>(&mut self, offset: usize) -> Result<&mut T, Reason> {
        let pos = self.check(offset, size_of::<T>())?;
        // SAFETY: as in `at`; `&mut self` makes it the only reference.
        Ok(unsafe { &mut *(pos as *mut T) })
    }

    /// Bytes of the linear part.
    #[inline(always)]
    pub fn len(&self) -> usize {
        self.end - self.start
    }

    #[inline(always)]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    #[inline(always)]
    fn check(&self, offset: usize, size: usize) -> Result<usize, Reason> {
        if offset > MAX_OFFSET {
            return Err(Reason::Truncated);
        }
        let pos = self.start + offset;
        if pos + size > self.end {
            return Err(Reason::Truncated);
        }
        Ok(pos)
    }
}

/// A frame in XDP: may be written and resized.
pub struct Frame {
    ctx: *mut xdp_md,
}

impl Frame {
    #[inline(always)]
    pub fn new(ctx: &XdpContext) -> Self {
        Self { ctx: ctx.ctx }
    }

    #[inline(always)]
    pub fn view(&mut self) -> View<'_> {
        // SAFETY: the context is the one that the kernel passed.
        let (start, end) = unsafe { bounds!(self.ctx, xdp_md) };
        View { start, end, frame: PhantomData }
    }

    /// Index of the interface it came by.
    #[inline(always)]
    pub fn ifindex(&self) -> u32 {
        XdpContext::new(self.ctx).ingress_ifindex() as u32
    }

    /// Bytes of the whole frame, all buffers.
    #[inline(always)]
    pub fn total_len(&self) -> usize {
        self.whole().len()
    }

    /// The whole frame, of which only the length is of interest beside a view.
    #[inline(always)]
    pub fn whole(&self) -> Whole {
        Whole(self.ctx)
    }

    /// Adds `bytes` in front; negative: removes. [`Reason::NoRoom`] where the driver has none.
    #[inline(always)]
    pub fn grow_head(&mut self, bytes: i32) -> Result<(), Reason> {
        // SAFETY: the context is the one that the kernel passed.
        match unsafe { bpf_xdp_adjust_head(self.ctx, -bytes) } {
            0 => Ok(()),
            _ => Err(Reason::NoRoom),
        }
    }

    /// Adds `bytes` at the end; negative: removes.
    #[inline(always)]
    pub fn grow_tail(&mut self, bytes: i32) -> Result<(), Reason> {
        // SAFETY: as in `grow_head`.
        match unsafe { bpf_xdp_adjust_tail(self.ctx, bytes) } {
            0 => Ok(()),
            _ => Err(Reason::NoRoom),
        }
    }
}

/// All buffers of a frame, whose length costs a helper call.
#[derive(Clone, Copy)]
pub struct Whole(*mut xdp_md);

impl Whole {
    #[inline(always)]
    #[expect(clippy::len_without_is_empty, reason = "no frame is empty")]
    pub fn len(self) -> usize {
        // SAFETY: the context is the one that the kernel passed.
        unsafe { bpf_xdp_get_buff_len(self.0) as usize }
    }
}

/// Sends the frame out by another interface; the value to return.
#[inline(always)]
pub fn redirect(ifindex: u32) -> u32 {
    // SAFETY: plain numbers.
    unsafe { bpf_redirect(ifindex, 0) as u32 }
}

/// A packet in tc: read directly, changed by helpers only, because it may be a GSO packet with
/// CHECKSUM_PARTIAL, whose checksum field no arithmetic may touch.
pub struct Skb {
    skb: *mut __sk_buff,
}

/// The field is the one that CHECKSUM_PARTIAL leaves to the device: addresses, in TCP and UDP.
const PSEUDO_HEADER: u64 = 0x10;
/// UDP: 0 says "no checksum" and stays; a computed 0 is sent as all ones.
const MANGLED_0: u64 = 0x20;

/// Bytes that must be linear to be read: Ethernet, IPv6 with some extensions, TCP.
const HEADERS: usize = 128;

impl Skb {
    #[inline(always)]
    pub fn new(ctx: &TcContext) -> Self {
        Self { skb: ctx.as_ptr().cast() }
    }

    #[inline(always)]
    pub fn view(&mut self) -> View<'_> {
        // SAFETY: the context is the one that the kernel passed.
        let (start, end) = unsafe { bounds!(self.skb, __sk_buff) };
        View { start, end, frame: PhantomData }
    }

    /// Bytes of the whole packet.
    #[inline(always)]
    pub fn len(&self) -> usize {
        // SAFETY: the context is the one that the kernel passed.
        unsafe { (*self.skb).len as usize }
    }

    #[inline(always)]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Makes the headers linear where they are not.
    #[inline(always)]
    pub fn pull_headers(&mut self) {
        let wanted = self.len().min(HEADERS);
        if self.view().len() < wanted {
            // SAFETY: the context is the one that the kernel passed. A failure leaves less to be
            // read, which every read checks.
            let _ = unsafe { bpf_skb_pull_data(self.skb, wanted as u32) };
        }
    }

    #[inline(always)]
    pub fn store<T: Wire>(&mut self, offset: usize, value: &T) -> Result<(), Reason> {
        // SAFETY: reads `size_of::<T>()` bytes of `value`.
        let result = unsafe {
            bpf_skb_store_bytes(
                self.skb,
                offset as u32,
                core::ptr::from_ref(value).cast(),
                size_of::<T>() as u32,
                0,
            )
        };
        if result == 0 { Ok(()) } else { Err(Reason::Truncated) }
    }

    /// Changes the IPv4 header checksum at `offset` for a word that changed.
    #[inline(always)]
    pub fn ip_checksum(&mut self, offset: usize, old: u32, new: u32) -> Result<(), Reason> {
        // SAFETY: the context is the one that the kernel passed; the helper checks the offset.
        let result =
            unsafe { bpf_l3_csum_replace(self.skb, offset as u32, old.into(), new.into(), 4) };
        if result == 0 { Ok(()) } else { Err(Reason::Truncated) }
    }

    /// Changes the TCP or UDP checksum at `offset` for an address that changed.
    #[inline(always)]
    pub fn address_checksum(
        &mut self,
        offset: usize,
        udp: bool,
        old: &Addr,
        new: &Addr,
    ) -> Result<(), Reason> {
        let flags = PSEUDO_HEADER | if udp { MANGLED_0 } else { 0 };
        if new.is_v4() {
            return self.l4_checksum(offset, old.v4_word().into(), new.v4_word().into(), flags | 4);
        }
        let (mut from, mut to) = (old.halves(), new.halves());
        // SAFETY: both arrays are 16 bytes.
        let difference =
            unsafe { bpf_csum_diff(from.as_mut_ptr().cast(), 16, to.as_mut_ptr().cast(), 16, 0) };
        self.l4_checksum(offset, 0, difference as u64, flags)
    }

    /// Changes the TCP or UDP checksum at `offset` for a 16-bit field that changed.
    #[inline(always)]
    pub fn field_checksum(
        &mut self,
        offset: usize,
        udp: bool,
        old: u16,
        new: u16,
    ) -> Result<(), Reason> {
        let flags = if udp { MANGLED_0 } else { 0 };
        self.l4_checksum(offset, old.into(), new.into(), flags | 2)
    }

    #[inline(always)]
    fn l4_checksum(&mut self, offset: usize, old: u64, new: u64, flags: u64) -> Result<(), Reason> {
        // SAFETY: the context is the one that the kernel passed; the helper checks the offset.
        let result = unsafe { bpf_l4_csum_replace(self.skb, offset as u32, old, new, flags) };
        if result == 0 { Ok(()) } else { Err(Reason::Truncated) }
    }
}
