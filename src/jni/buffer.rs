//! One copy out of the Java heap, without the cost of a managed environment.

use std::cell::RefCell;

use jni::sys::{JNIEnv, jbyteArray, jint};

use crate::{
    error::{Error, Result},
    frame::MAX_FRAME,
};

/// A thread keeps its scratch up to this size.
const KEPT: usize = 1 << 20;

thread_local! {
    static SCRATCH: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Copies the first `length` bytes of `array` and hands them to `use_bytes`.
///
/// # Safety
/// `env` is this thread's environment inside a native call, and `array` is null or a live reference to a byte array.
pub(crate) unsafe fn with_bytes<T>(
    env: *mut JNIEnv,
    array: jbyteArray,
    length: jint,
    use_bytes: impl FnOnce(&[u8]) -> Result<T>,
) -> Result<T> {
    if array.is_null() {
        return Err(Error::MalformedFrame { at: 0, what: "an array (it is null)" });
    }
    let wanted = usize::try_from(length).map_err(|_| Error::MalformedFrame { at: 0, what: "a length of 0 or more" })?;
    if wanted > MAX_FRAME {
        return Err(Error::TooLarge { field: "frame", actual: wanted, limit: MAX_FRAME });
    }
    // SAFETY: the caller vouches for `env`; its function table belongs to the JVM and outlives the call. `array` is not
    // null, so the caller vouches that it is an array.
    let available = unsafe { ((**env).v1_1.GetArrayLength)(env, array) };
    if length > available {
        return Err(Error::MalformedFrame { at: 0, what: "a length within the array" });
    }
    SCRATCH.with_borrow_mut(|scratch| {
        scratch.clear();
        scratch.reserve(wanted);
        // SAFETY: 0..length is within the array, so nothing is thrown, and within the scratch's capacity; the JVM
        // writes all of it, after which that much is initialised. An array length never changes.
        unsafe {
            ((**env).v1_1.GetByteArrayRegion)(env, array, 0, length, scratch.as_mut_ptr().cast());
            scratch.set_len(wanted);
        }
        let result = use_bytes(scratch);
        if scratch.capacity() > KEPT {
            *scratch = Vec::new();
        }
        result
    })
}
