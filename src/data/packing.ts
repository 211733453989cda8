// Rows of examples that share one stretch of tokens. Examples in a row never see each other: the row's cumulative lengths
// bound attention, and positions start at 0 for each.

/**
 * Packs examples, in the order given, into rows of at most `rowTokens` tokens: each goes to the first of the last
 * `openRows` rows that has room, else it opens a row. Deterministic; rows come in the order they were opened.
 */
export function packRows(
  order: Iterable<number>,
  lengthOf: (example: number) => number,
  rowTokens: number,
  openRows = 64,
): number[][] {
  const rows: number[][] = [];
  let open: { row: number[]; room: number }[] = [];
  for (const example of order) {
    const length = lengthOf(example);
    if (length > rowTokens) {
      throw new RangeError(`example ${example} has ${length} tokens and does not fit a row of ${rowTokens}`);
    }
    let place = open.find(({ room }) => room >= length);
    if (!place) {
      place = { row: [], room: rowTokens };
      rows.push(place.row);
      open.push(place);
      if (open.length > openRows) open.shift();
    }
    place.row.push(example);
    place.room -= length;
    if (place.room === 0) open = open.filter((row) => row !== place);
  }
  return rows;
}
