import react from "@vitejs/plugin-react";
import { defineConfig } from "vitest/config";

// The pages go into the Python package, from which the API serves them; nothing of them is inline, for the content security policy.
export default defineConfig({
  plugins: [react()],
  build: {
    outDir: "../src/lab_backup/pages",
    emptyOutDir: true,
    assetsInlineLimit: 0,
    modulePreload: { polyfill: false },
  },
  server: { proxy: { "/api": { target: "http://127.0.0.1:8000", ws: true } } },
  test: { environment: "jsdom", globals: false, restoreMocks: true },
});
