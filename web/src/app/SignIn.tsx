import { Box, Button, Paper, Stack, TextField, Typography } from "@mui/material";
import { type ReactNode, type SyntheticEvent, useState } from "react";

import { Problem, signIn } from "../api/session";
import { Trouble } from "../parts/Trouble";
import { useTexts } from "../texts";

/** The page of who is not signed in. */
export function SignIn() {
  const { t } = useTexts();
  const [name, setName] = useState("");
  const [password, setPassword] = useState("");
  const [code, setCode] = useState("");
  const [error, setError] = useState<unknown>();
  const [busy, setBusy] = useState(false);
  const submit = (event: SyntheticEvent) => {
    event.preventDefault();
    setBusy(true);
    setError(undefined);
    signIn(name, password, code.replace(/\s/g, "") || undefined)
      .catch((wrong: unknown) => {
        setError(wrong instanceof Problem ? wrong : new Problem(0, t.problem));
      })
      .finally(() => {
        setBusy(false);
      });
  };
  return (
    <Frame title="Lab Backup">
      <form onSubmit={submit}>
        <Stack spacing={2}>
          <TextField label={t.username} value={name} required autoFocus autoComplete="username" onChange={(event) => { setName(event.target.value); }} />
          <TextField label={t.password} value={password} required type="password" autoComplete="current-password" onChange={(event) => { setPassword(event.target.value); }} />
          <TextField label={t.code} value={code} autoComplete="one-time-code" slotProps={{ htmlInput: { inputMode: "numeric" } }} onChange={(event) => { setCode(event.target.value); }} />
          <Trouble error={error} />
          <Button type="submit" variant="contained" size="large" disabled={busy}>
            {t.signIn}
          </Button>
        </Stack>
      </form>
    </Frame>
  );
}

export function Frame({ title, children }: { title: string; children: ReactNode }) {
  return (
    <Box component="main" sx={{ minHeight: "100vh", display: "grid", placeItems: "center", p: 2 }}>
      <Paper variant="outlined" sx={{ p: 4, width: "100%", maxWidth: 420 }}>
        <Stack direction="row" spacing={1.5} sx={{ mb: 3, alignItems: "center" }}>
          <img src="/icon.svg" alt="" width={36} height={36} />
          <Typography variant="h1">{title}</Typography>
        </Stack>
        {children}
      </Paper>
    </Box>
  );
}
