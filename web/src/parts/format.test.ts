import { describe, expect, it } from "vitest";

import { ago, bytes, duration } from "./format";

describe("figures for people", () => {
  it("writes bytes in IEC units, without false precision", () => {
    expect([0, 1023, 1024, 1536, 10 * 1024 ** 3, 5 * 1024 ** 6].map(bytes)).toEqual(["0 B", "1023 B", "1.0 KiB", "1.5 KiB", "10.0 GiB", "5120 PiB"]);
    expect(bytes(null)).toBe("–");
  });
  it("says how long ago something was in the language of the reader", () => {
    const now = Date.parse("2030-01-02T12:00:00Z");
    expect(ago("2030-01-01T12:00:00Z", "en", now)).toBe("yesterday");
    expect(ago("2030-01-02T09:00:00Z", "de", now)).toBe("vor 3 Stunden");
    expect(ago("2030-01-02T12:10:00Z", "en", now)).toBe("in 10 minutes");
  });
  it("writes durations in the two largest units", () => {
    expect([5, 90, 3700, 7260].map(duration)).toEqual(["5 s", "2 min", "1 h 2 min", "2 h 1 min"]);
  });
});
