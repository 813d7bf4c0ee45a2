//! NFSv3 in user space.
