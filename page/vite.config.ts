import { svelte } from '@sveltejs/vite-plugin-svelte'
import { defineConfig } from 'vite'
import { licenses } from './licenses.ts'

// Where the server runs while the page is developed with `npm run dev`.
const server = process.env.STUDIO ?? 'http://127.0.0.1:8090'

export default defineConfig({
  base: './',
  plugins: [svelte(), licenses()],
  build: {
    outDir: '../src/tunewright/studio/page',
    emptyOutDir: true,
    target: 'es2022',
    // The content security policy allows no inline script and no data: script.
    assetsInlineLimit: 0,
    modulePreload: { polyfill: false },
  },
  server: { host: '127.0.0.1', proxy: { '/api': { target: server, changeOrigin: false } } },
})
