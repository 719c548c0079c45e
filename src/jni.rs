//! The natives of `com.alipay.sofa.registry.mox.NativeBridge`; shells around [`handle`] and the engine.
//!
//! Java calls in, nothing calls out. `apply` is the hot one: one region copy, no exceptions, a code for an error. The
//! others throw `MoxException`. No panic leaves a native.
#![allow(unsafe_code)]

mod buffer;
mod error;
mod handle;
#[cfg(target_env = "gnu")]
mod musl;

use std::{panic::AssertUnwindSafe, time::Duration};

use jni::{
    EnvUnowned,
    objects::{JByteArray, JClass},
    sys::{JNIEnv, jbyteArray, jclass, jint, jlong},
};

use crate::{
    config::Config,
    error::Error,
    host::command,
    jni::error::{NativeError, ThrowMoxException},
};

/// Raised when a native's name, signature or meaning changes; the jar refuses a library with another.
const ABI_VERSION: jint = 5;

#[unsafe(no_mangle)]
extern "system" fn Java_com_alipay_sofa_registry_mox_NativeBridge_abiVersion(_: EnvUnowned<'_>, _: JClass<'_>) -> jint {
    ABI_VERSION
}

#[unsafe(no_mangle)]
extern "system" fn Java_com_alipay_sofa_registry_mox_NativeBridge_open<'local>(
    mut env: EnvUnowned<'local>,
    _: JClass<'local>,
    config: JByteArray<'local>,
) -> jlong {
    let outcome = env.with_env(|env| -> Result<jlong, NativeError> {
        error::log_panics();
        let config = Config::from_json(&env.convert_byte_array(config)?)?;
        Ok(handle::open(config)?)
    });
    outcome.resolve::<ThrowMoxException>()
}

/// Takes a packed frame: a sequence number, or a negated code of [`Error::code`], whose text `lastError` has. Never throws.
///
/// # Safety
/// Called by the JVM, which hands in a valid environment and live references.
#[unsafe(no_mangle)]
unsafe extern "system" fn Java_com_alipay_sofa_registry_mox_NativeBridge_apply(
    env: *mut JNIEnv,
    _: jclass,
    handle: jlong,
    frame: jbyteArray,
    length: jint,
) -> jlong {
    let applied = std::panic::catch_unwind(AssertUnwindSafe(|| {
        let engine = handle::get(handle)?;
        // SAFETY: the JVM called us with this environment on this thread, and `frame` is its argument: null or a live
        // local reference to a byte array, as the native's signature says.
        unsafe { buffer::with_bytes(env, frame, length, |bytes| engine.apply(bytes)) }
    }));
    match applied {
        Ok(Ok(sequence)) => sequence as jlong,
        Ok(Err(error)) => -jlong::from(error::keep(error)),
        Err(panic) => -jlong::from(error::keep(Error::Internal(error::panic_message(&*panic).to_owned()))),
    }
}

#[unsafe(no_mangle)]
extern "system" fn Java_com_alipay_sofa_registry_mox_NativeBridge_lastError<'local>(
    mut env: EnvUnowned<'local>,
    _: JClass<'local>,
) -> JByteArray<'local> {
    let outcome = env.with_env(|env| -> Result<JByteArray<'local>, NativeError> {
        match error::take_kept() {
            Some(text) => Ok(env.byte_array_from_slice(text.as_bytes())?),
            None => Ok(JByteArray::null()),
        }
    });
    outcome.resolve::<ThrowMoxException>()
}

#[unsafe(no_mangle)]
extern "system" fn Java_com_alipay_sofa_registry_mox_NativeBridge_command<'local>(
    mut env: EnvUnowned<'local>,
    _: JClass<'local>,
    handle: jlong,
    request: JByteArray<'local>,
) -> JByteArray<'local> {
    let outcome = env.with_env(|env| -> Result<JByteArray<'local>, NativeError> {
        let request = env.convert_byte_array(request)?;
        let engine = handle::get(handle)?;
        let answer = engine.logging(|| command::execute(&engine.engine(), &request))?;
        Ok(env.byte_array_from_slice(answer.to_string().as_bytes())?)
    });
    outcome.resolve::<ThrowMoxException>()
}

#[unsafe(no_mangle)]
extern "system" fn Java_com_alipay_sofa_registry_mox_NativeBridge_openPage<'local>(
    mut env: EnvUnowned<'local>,
    _: JClass<'local>,
    handle: jlong,
    request: JByteArray<'local>,
) -> JByteArray<'local> {
    let outcome = env.with_env(|env| -> Result<JByteArray<'local>, NativeError> {
        let request = env.convert_byte_array(request)?;
        let engine = handle::get(handle)?.engine();
        let (page, cursor) = command::open_page(&engine, &request)?;
        let page = env.byte_array_from_slice(&page)?;
        // Not before there is something that names it to Java.
        cursor.into_iter().for_each(|cursor| engine.keep(cursor));
        Ok(page)
    });
    outcome.resolve::<ThrowMoxException>()
}

#[unsafe(no_mangle)]
extern "system" fn Java_com_alipay_sofa_registry_mox_NativeBridge_nextChunk<'local>(
    mut env: EnvUnowned<'local>,
    _: JClass<'local>,
    handle: jlong,
    cursor: jlong,
) -> JByteArray<'local> {
    let outcome = env.with_env(|env| -> Result<JByteArray<'local>, NativeError> {
        match handle::get(handle)?.large().next(cursor as u64)? {
            Some(chunk) => Ok(env.byte_array_from_slice(&chunk)?),
            None => Ok(JByteArray::null()),
        }
    });
    outcome.resolve::<ThrowMoxException>()
}

#[unsafe(no_mangle)]
extern "system" fn Java_com_alipay_sofa_registry_mox_NativeBridge_closePage<'local>(
    mut env: EnvUnowned<'local>,
    _: JClass<'local>,
    handle: jlong,
    cursor: jlong,
) {
    let outcome = env.with_env(|_| -> Result<(), NativeError> {
        // A page of an engine that is closed is closed.
        if let Ok(engine) = handle::get(handle) {
            engine.large().close(cursor as u64);
        }
        Ok(())
    });
    outcome.resolve::<ThrowMoxException>()
}

#[unsafe(no_mangle)]
extern "system" fn Java_com_alipay_sofa_registry_mox_NativeBridge_nextLogs<'local>(
    mut env: EnvUnowned<'local>,
    _: JClass<'local>,
    handle: jlong,
    timeout_millis: jlong,
) -> JByteArray<'local> {
    let outcome = env.with_env(|env| -> Result<JByteArray<'local>, NativeError> {
        let timeout = Duration::from_millis(timeout_millis.clamp(0, 3_600_000) as u64);
        let Some(lines) = handle::next_logs(handle, timeout) else { return Ok(JByteArray::null()) };
        let json = serde_json::to_vec(&lines).map_err(|error| Error::Internal(error.to_string()))?;
        Ok(env.byte_array_from_slice(&json)?)
    });
    outcome.resolve::<ThrowMoxException>()
}

#[unsafe(no_mangle)]
extern "system" fn Java_com_alipay_sofa_registry_mox_NativeBridge_close<'local>(
    mut env: EnvUnowned<'local>,
    _: JClass<'local>,
    handle: jlong,
) {
    let outcome = env.with_env(|_| -> Result<(), NativeError> {
        handle::remove(handle);
        Ok(())
    });
    outcome.resolve::<ThrowMoxException>()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    /// The natives that Java declares and those that are exported here have the same names.
    #[test]
    fn java_declares_what_is_exported() {
        let java = include_str!("../java/src/main/java/com/alipay/sofa/registry/mox/NativeBridge.java");
        let declared: BTreeSet<&str> = java
            .lines()
            .filter(|line| line.contains(" static native "))
            .filter_map(|line| line.split_once('(')?.0.rsplit(' ').next())
            .collect();
        let exported: BTreeSet<&str> = include_str!("jni.rs")
            .lines()
            .filter(|line| line.contains("extern \"system\" fn"))
            .filter_map(|line| line.split_once("NativeBridge_"))
            .filter_map(|(_, rest)| rest.split(['(', '<']).next())
            .collect();
        assert_eq!(declared, exported);
        assert_eq!(exported.len(), 10);
    }
}
