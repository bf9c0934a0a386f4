//! `seL4_Error`: how an invocation went. The number is the label of the answer.

macro_rules! numbered {
    ($(#[$m:meta])* $vis:vis enum $name:ident : $repr:ty { $($(#[$vm:meta])* $v:ident = $n:expr,)* }) => {
        $(#[$m])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
        #[repr($repr)]
        $vis enum $name { $($(#[$vm])* $v = $n,)* }
        impl $name {
            /// Every value, in order of its declaration.
            pub const ALL: &'static [$name] = &[$($name::$v,)*];
            /// The value with this number, if there is one.
            pub const fn from_number(n: $repr) -> Option<$name> {
                $(if n == $n { return Some($name::$v) })*
                None
            }
            /// Its number in the interface.
            pub const fn number(self) -> $repr { self as $repr }
            /// Its name without prefix.
            pub const fn name(self) -> &'static str {
                match self { $($name::$v => stringify!($v),)* }
            }
        }
    };
}
pub(crate) use numbered;

numbered! {
/// Why an invocation was refused. Up to [`Error::NotEnoughMemory`] seL4's; the rest is Clustix's.
pub enum Error: u64 {
    /// An argument has a value that the invocation does not know (the caller's fault).
    InvalidArgument = 1,
    /// The invoked or a passed capability is of the wrong kind or lacks a right (the caller's
    /// fault).
    InvalidCapability = 2,
    /// The object is not in a state, or not of a kind, that allows the operation.
    IllegalOperation = 3,
    /// An argument is outside its allowed range.
    RangeError = 4,
    /// An address or size is not aligned as it must be.
    AlignmentError = 5,
    /// A CPtr leads to no slot or to an empty one.
    FailedLookup = 6,
    /// The message holds fewer words or capabilities than the invocation takes.
    TruncatedMessage = 7,
    /// The destination slot is not empty.
    DeleteFirst = 8,
    /// The capability has derived ones that stand in the way.
    RevokeFirst = 9,
    /// The PD's object budget, or one of the kernel's tables, is used up.
    NotEnoughMemory = 10,
    /// The other side died, or the object went, while the operation waited: whether it had an
    /// effect is not known. Clustix's own; seL4 suspends the thread instead.
    Gone = 0x1000,
    /// The PD has as many operations waiting in the kernel as it may have. Clustix's own; in seL4 a
    /// thread waits for one thing at a time.
    Busy = 0x1001,
    /// The host could not do what was allowed (out of processes, descriptors or memory). Clustix's
    /// own.
    HostFailure = 0x1002,
}
}

/// `seL4_NoError`: the label of the answer to an invocation that went well.
pub const NO_ERROR: u64 = 0;

numbered! {
/// `seL4_LookupFailureType`: how a CPtr failed to resolve.
pub enum LookupFailure: u64 {
    /// The root of the lookup is no CNode.
    InvalidRoot = 1,
    /// The slot is empty.
    MissingCapability = 2,
    /// Bits are left over that the object found cannot resolve, or too few were given.
    DepthMismatch = 3,
    /// A CNode's guard does not agree with the bits of the CPtr.
    GuardMismatch = 4,
}
}
