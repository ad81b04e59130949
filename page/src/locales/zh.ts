// One pack of all Chinese files; see lib/words.svelte.ts.
const files = import.meta.glob<Record<string, string>>('./zh*.json', {
  eager: true,
  import: 'default',
})

export default Object.assign({}, ...Object.values(files)) as Record<string, string>
