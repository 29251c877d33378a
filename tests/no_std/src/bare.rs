//! What stands in for an operating system: an entry, an exit, memory, a panic handler.
//!
//! The only `unsafe` of the repository is here, outside the workspace that forbids it: an entry point and
//! an allocator cannot be had without.

use core::alloc::{GlobalAlloc, Layout};
use core::arch::{asm, global_asm};
use core::cell::UnsafeCell;
use core::panic::PanicInfo;
use core::sync::atomic::{AtomicUsize, Ordering};

/// Exit code after a panic; steps count from 1 and stay far below.
const PANICKED: u8 = 101;

/// Bytes that the whole run may allocate; nothing is ever given back.
const HEAP_BYTES: usize = 8 * 1024 * 1024;

// The kernel enters with an aligned stack and no return address; a function expects one.
global_asm!(
    ".globl _start",
    "_start:",
    "xor ebp, ebp",
    "and rsp, -16",
    "call {entry}",
    "ud2",
    entry = sym entry,
);

// What the compiler calls on its own account; every target brings it, as C library or as these.
global_asm!(
    ".globl memcpy, memmove, memset, memcmp, bcmp",
    "memmove:",
    "mov rax, rdi",
    "sub rax, rsi",
    "cmp rax, rdx",
    "jae memcpy", // the target does not begin inside the source: front to back is safe
    "mov rax, rdi",
    "mov rcx, rdx",
    "lea rdi, [rdi + rdx - 1]",
    "lea rsi, [rsi + rdx - 1]",
    "std",
    "rep movsb",
    "cld",
    "ret",
    "memcpy:",
    "mov rax, rdi",
    "mov rcx, rdx",
    "rep movsb",
    "ret",
    "memset:",
    "mov r8, rdi",
    "mov eax, esi",
    "mov rcx, rdx",
    "rep stosb",
    "mov rax, r8",
    "ret",
    "memcmp:",
    "bcmp:",
    "xor ecx, ecx",
    "2:",
    "cmp rcx, rdx",
    "je 3f",
    "movzx eax, byte ptr [rdi + rcx]",
    "movzx r8d, byte ptr [rsi + rcx]",
    "inc rcx",
    "sub eax, r8d",
    "jz 2b",
    "ret",
    "3:",
    "xor eax, eax",
    "ret",
);

extern "C" fn entry() -> ! {
    exit(super::steps().err().unwrap_or(0))
}

fn exit(code: u8) -> ! {
    // SAFETY: `exit_group` takes one number, touches no memory of ours and does not return.
    unsafe {
        asm!("syscall", in("rax") 231, in("rdi") u64::from(code), options(noreturn, nostack));
    }
}

#[panic_handler]
fn panicked(_: &PanicInfo<'_>) -> ! {
    exit(PANICKED)
}

/// Hands out slices of one static block, front to back.
struct Bump {
    block: UnsafeCell<[u8; HEAP_BYTES]>,
    used: AtomicUsize,
}

// SAFETY: the block is only reached through `alloc`, whose atomic counter gives each byte out once.
unsafe impl Sync for Bump {}

// SAFETY: the slices are aligned as asked for, lie inside the block, never overlap and are never reused.
unsafe impl GlobalAlloc for Bump {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let start = self.block.get().cast::<u8>();
        let mut offset = 0;
        let taken = self.used.try_update(Ordering::Relaxed, Ordering::Relaxed, |used| {
            let address = start.addr().checked_add(used)?.checked_next_multiple_of(layout.align())?;
            offset = address - start.addr();
            offset.checked_add(layout.size()).filter(|end| *end <= HEAP_BYTES)
        });
        match taken {
            // `offset + size <= HEAP_BYTES`, so the result lies inside the block.
            Ok(_) => start.wrapping_add(offset),
            Err(_) => core::ptr::null_mut(),
        }
    }

    unsafe fn dealloc(&self, _: *mut u8, _: Layout) {}
}

#[global_allocator]
static HEAP: Bump = Bump { block: UnsafeCell::new([0; HEAP_BYTES]), used: AtomicUsize::new(0) };
