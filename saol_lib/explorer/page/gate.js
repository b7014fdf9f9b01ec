// At most one request is on its way to Python; meanwhile only the newest wish is kept, and it goes out on the answer.

export const PATIENCE = 5000; // milliseconds after which a request counts as lost

export function makeGate(send, first = 0, now = () => performance.now()) {
  let number = first;
  let sentAt = null;
  let inFlight = null;
  let waiting = null;
  let newest = null;

  function go(wish) {
    number += 1;
    inFlight = number;
    sentAt = now();
    waiting = null;
    send(wish, number);
  }

  return {
    ask(wish) {
      newest = wish;
      const lost = inFlight !== null && now() - sentAt > PATIENCE;
      if (inFlight === null || lost) go(wish);
      else waiting = wish;
    },

    // True if that was the request on its way; answers to others are stale.
    answered(which) {
      if (which !== inFlight) return false;
      inFlight = null;
      if (waiting !== null) go(waiting);
      else newest = null;
      return true;
    },

    // What was wished for last, as long as its answer is not there.
    wished: () => newest,
  };
}

// What the page shows of the reader's choice: the newest wish at once, else what Python says.
export function shownChoice(wish, answered) {
  return wish && wish.box && wish.model === answered.model ? wish : answered;
}
