// The columns that a format knows, from the line that says what it needs:
// "instruction, output (input, system, history)", "messages: [{role, content}, ...]".

const NO_COLUMN = new Set(['true', 'false', 'list', 'and', 'for', 'each'])

export function columnsOf(needs: string): string[] {
  const outer = needs
    .replace(/\[[^\]]*\]/g, '')
    // "messages that end with a question": what is said of a column.
    .replace(/\bthat\b[^|,;)]*/g, '')
  const words = outer.match(/[a-z_]{3,}/g) ?? []
  return [...new Set(words)].filter((word) => !NO_COLUMN.has(word))
}
