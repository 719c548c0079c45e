package com.alipay.sofa.registry.mox.session;

/** Why a publisher of the registry is not taken, or not whole; in the order in which one counts where there are several. */
enum Refusal {
    /** There is none where one should be. */
    NO_PUBLISHER("no-publisher"),
    /** Its dataInfoId is null, empty or too long for an event. */
    DATA_INFO_ID("data-info-id"),
    /** Its registerId is null, so there is no key for it. */
    NO_REGISTER_ID("no-register-id"),
    /** Its service is too large; the smallest publishers are taken. */
    SERVICE_TOO_LARGE("service-too-large"),
    /** A fault here; it is left out. */
    ERROR("error"),
    /** More data than a publisher may have; the first are taken. */
    TOO_MUCH_DATA("too-much-data"),
    /** Some of its data are null, too long or cannot be read; the others are taken. */
    DATA("data"),
    /** Its cell is too long; it is taken without. */
    CELL("cell"),
    /** Its application's name is too long; it is taken without. */
    APP_NAME("app-name"),
    /** Some of its attributes are null, too long or too many; the others are taken. */
    ATTRIBUTES("attributes");

    /** As status and metrics have it. */
    final String key;

    Refusal(String key) {
        this.key = key;
    }

    /** The one that counts; null is none. */
    static Refusal first(Refusal one, Refusal other) {
        return one == null || other != null && other.compareTo(one) < 0 ? other : one;
    }
}
