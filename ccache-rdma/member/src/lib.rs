//! clustix-member.
