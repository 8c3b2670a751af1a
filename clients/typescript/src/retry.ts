/** When to retry, when to give up, and when silence is a break. */

const DELAY_FIRST_MS = 50;
const DELAY_MS_MAX = 5_000;
export const GIVE_UP_AFTER_MS = 60_000;

/** The failures since the last progress. */
export class Backoff {
  #failures = 0;
  #brokenSince = 0;

  progress(): void {
    this.#failures = 0;
  }

  /** Counts a failure. Returns how long to wait before the next attempt; undefined to give up. */
  failure(): number | undefined {
    const now = performance.now();
    if (this.#failures === 0) {
      this.#brokenSince = now;
    }
    const left = this.#brokenSince + GIVE_UP_AFTER_MS - now;
    if (left <= 0) {
      return undefined;
    }
    const delay = Math.min(DELAY_FIRST_MS * 2 ** this.#failures, DELAY_MS_MAX);
    this.#failures += 1;
    // At random, so that clients cut off together do not all come back at once.
    return Math.min(delay * (0.5 + Math.random() / 2), left);
  }
}

/** Calls `onSilence` after `msMax` without a message. */
export class Watchdog {
  barked = false;
  #timer: NodeJS.Timeout | undefined;

  constructor(
    private readonly msMax: number,
    private readonly onSilence: () => void,
  ) {}

  /** From now on a message is due. */
  waitForWord(): void {
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => {
      this.barked = true;
      this.onSilence();
    }, this.msMax);
  }

  /** From now on no message is due. */
  rest(): void {
    clearTimeout(this.#timer);
  }
}
