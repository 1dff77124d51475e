"use strict";

const WORD = /[\p{L}\p{M}\p{N}]+(?:['’-][\p{L}\p{M}\p{N}]+)*/gu;

/** One line: the number of words in a text, the longest word, and the count of each word. */
function line({ text }) {
  const words = text.normalize("NFC").toLowerCase().match(WORD) ?? [];
  if (words.length === 0) {
    throw new RangeError(`no word in ${JSON.stringify(text)}`);
  }
  const counts = new Map();
  for (const word of words) {
    counts.set(word, (counts.get(word) ?? 0) + 1);
  }
  const longest = words.reduce((best, word) => ([...word].length > [...best].length ? word : best));
  return { words: words.length, longest, counts: Object.fromEntries(counts) };
}

/** All completed lines together: totals as metrics, and the most frequent words. */
function aggregate(outputs) {
  const total = new Map();
  for (const { counts } of outputs) {
    for (const [word, count] of Object.entries(counts)) {
      total.set(word, (total.get(word) ?? 0) + count);
    }
  }
  const words = outputs.reduce((sum, output) => sum + output.words, 0);
  const byCount = [...total].sort(([a, m], [b, n]) => n - m || (a < b ? -1 : 1));
  return {
    output: { most_frequent: Object.fromEntries(byCount.slice(0, 3)) },
    metrics: { words, distinct_words: total.size, mean_words: outputs.length ? words / outputs.length : 0 },
  };
}

module.exports = { line, aggregate };
