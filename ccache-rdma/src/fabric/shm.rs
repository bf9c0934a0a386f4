//! The fabric of nodes that are processes on one machine and map each other's arenas.
