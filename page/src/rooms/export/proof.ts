// What an export writes down about itself, as far as the page shows it.

export type Proof = {
  folder?: string
  file?: string
  exported?: string
  verdict: string
  type?: string
  dtype?: string
  run_by?: { name: string; with?: string; package?: string; version?: string }
  computed_in?: string
  largest_logit_difference?: number | null
  top1_agreement?: number | null
  positions?: number
  prompts?: number
  loss?: { base: number | null; run: number | null; exported: number | null } | null
  answers?: {
    asked: number
    same: number
    with_expectation: number
    right_in_run: number
    right: number
  } | null
  weight_bytes?: number | null
  file_bytes?: number | null
  plain_bytes?: number | null
  tokens_per_second?: { answers_with_their_prompts?: number } | null
  memory?: { exported?: { answering_bytes?: number; tokens_per_second?: number } } | null
  warnings?: string[]
  notes?: string[]
  seconds?: number
}

export const place = (proof: Proof): string => proof.file ?? proof.folder ?? ''

/** The command that uses what was written, for a terminal. */
export function useLine(proof: Proof, quoted: (text: string) => string): string {
  const out = place(proof)
  const name = out.split('/').pop() ?? 'model'
  if (proof.exported === 'ollama') {
    return `ollama create ${quoted(name)} -f ${quoted(`${out}/Modelfile`)} && ollama run ${quoted(name)}`
  }
  if (proof.file?.endsWith('.gguf')) {
    const isAdapter = proof.exported === 'gguf_adapter' || proof.exported === 'adapter'
    return isAdapter
      ? `llama-cli -m BASE.gguf --lora ${quoted(out)}`
      : `llama-cli -m ${quoted(out)}`
  }
  return `tunewright chat ${quoted(out)}`
}

export function pythonLines(proof: Proof): string {
  if (proof.file || proof.exported === 'ollama') return ''
  return [
    'from transformers import AutoModelForCausalLM, AutoTokenizer',
    '',
    `folder = ${JSON.stringify(place(proof))}`,
    'tokenizer = AutoTokenizer.from_pretrained(folder)',
    'model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")',
  ].join('\n')
}

/** A word for a shell, quoted where it must be. */
export function shellWord(text: string): string {
  return /^[\w./:=@+-]+$/.test(text) ? text : `'${text.replaceAll("'", `'\\''`)}'`
}
