//! What the standard library asks of glibc and musl has not, so that one library runs with both.
//!
//! Both functions belong together: the standard library asks for the version where a name cannot be resolved, and has a glibc before
//! 2.26 read `resolv.conf` again. With glibc its own functions are called; with musl there is no version, so nobody asks for more.

use std::{
    ffi::{CStr, c_char, c_int, c_void},
    mem::transmute,
    ptr,
};

/// `RTLD_NEXT`: the libraries that follow the one that asks.
const NEXT: *mut c_void = ptr::without_provenance_mut(usize::MAX);

unsafe extern "C" {
    fn dlsym(library: *mut c_void, name: *const c_char) -> *mut c_void;
}

/// The C library's own function of a name, if it has one.
fn own(name: &CStr) -> Option<*mut c_void> {
    // SAFETY: the name ends with a zero byte, and NEXT is a handle that every C library of Linux takes.
    let found = unsafe { dlsym(NEXT, name.as_ptr()) };
    (!found.is_null()).then_some(found)
}

#[unsafe(no_mangle)]
extern "C" fn gnu_get_libc_version() -> *const c_char {
    let Some(version) = own(c"gnu_get_libc_version") else { return c"".as_ptr() };
    // SAFETY: glibc declares it so in gnu/libc-version.h.
    unsafe { transmute::<*mut c_void, extern "C" fn() -> *const c_char>(version)() }
}

#[unsafe(no_mangle)]
extern "C" fn __res_init() -> c_int {
    let Some(init) = own(c"__res_init") else { return 0 };
    // SAFETY: glibc declares it so in resolv.h.
    unsafe { transmute::<*mut c_void, extern "C" fn() -> c_int>(init)() }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The tests run with glibc.
    #[test]
    fn glibc_answers_for_itself() {
        // SAFETY: a text that ends with a zero byte, for the life of the process.
        let version = unsafe { CStr::from_ptr(gnu_get_libc_version()) }.to_str().unwrap();
        let (major, minor) = version.split_once('.').unwrap();
        assert!(major == "2" && minor.parse::<u32>().unwrap() >= 17, "{version}");
        assert_eq!(__res_init(), 0);
        assert!(own(c"registry_mox_has_no_such_function").is_none());
    }
}
