/**
 * Serves services to Istio as MCP-over-xDS (MoX).
 *
 * <p>{@link com.alipay.sofa.registry.mox.RegistryMox} is the one entry point: it holds the engine, a native library inside
 * this jar, and hands it publishers. {@link com.alipay.sofa.registry.mox.MoxConfig} says how the engine runs,
 * {@link com.alipay.sofa.registry.mox.Publish} is one publisher.
 */
package com.alipay.sofa.registry.mox;
