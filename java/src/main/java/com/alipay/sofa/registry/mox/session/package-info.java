/**
 * Follows the publishers of a SOFARegistry session server: on its class path with {@code mox.enabled=true}, Spring does the
 * rest. Nothing here is an interface for others; extensions use {@link
 * com.alipay.sofa.registry.mox.RegistryMox#running()}.
 */
package com.alipay.sofa.registry.mox.session;
