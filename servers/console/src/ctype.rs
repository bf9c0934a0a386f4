//! Linux's lib/ctype.c: Latin-1, as the line discipline asks it.

/// Control characters.
pub const fn is_cntrl(c: u8) -> bool {
    c < 0x20 || c == 0x7f
}

const fn is_upper(c: u8) -> bool {
    c.is_ascii_uppercase() || (c >= 0xc0 && c <= 0xde && c != 0xd7)
}

const fn is_lower(c: u8) -> bool {
    c.is_ascii_lowercase() || (c >= 0xdf && c != 0xf7)
}

/// Letters and digits.
pub const fn is_alnum(c: u8) -> bool {
    is_upper(c) || is_lower(c) || c.is_ascii_digit()
}

/// The small letter.
pub const fn to_lower(c: u8) -> u8 {
    if is_upper(c) { c + 0x20 } else { c }
}

/// The capital letter (0xdf and 0xff have none in Latin-1, and become what Linux makes of them).
pub const fn to_upper(c: u8) -> u8 {
    if is_lower(c) { c - 0x20 } else { c }
}
