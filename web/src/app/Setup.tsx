import { Button, Stack, TextField, Typography } from "@mui/material";
import { type SyntheticEvent, useState } from "react";
import { useNavigate } from "react-router";

import { api, signIn } from "../api/session";
import { Trouble } from "../parts/Trouble";
import { useTexts } from "../texts";
import { Frame } from "./SignIn";

/** The first run: the one-time link leads here, and the first administrator is made. */
export function Setup() {
  const { t } = useTexts();
  const go = useNavigate();
  const [name, setName] = useState("");
  const [password, setPassword] = useState("");
  const [email, setEmail] = useState("");
  const [error, setError] = useState<unknown>();
  const token = decodeURIComponent(window.location.hash.slice(1));
  const make = async () => {
    await api.POST("/api/v1/setup", { body: { token, username: name, password, email } });
    await signIn(name, password);
    await go("/storage?first=1");
  };
  const submit = (event: SyntheticEvent) => {
    event.preventDefault();
    setError(undefined);
    make().catch(setError);
  };
  return (
    <Frame title={t.setupTitle}>
      <form onSubmit={submit}>
        <Stack spacing={2}>
          <Typography color="text.secondary">{t.setupText}</Typography>
          <TextField label={t.username} value={name} required autoFocus autoComplete="username" onChange={(event) => { setName(event.target.value); }} />
          <TextField label={t.password} value={password} required type="password" autoComplete="new-password" onChange={(event) => { setPassword(event.target.value); }} />
          <TextField label={t.email} value={email} type="email" autoComplete="email" onChange={(event) => { setEmail(event.target.value); }} />
          <Trouble error={error} />
          <Button type="submit" variant="contained" size="large">
            {t.create}
          </Button>
        </Stack>
      </form>
    </Frame>
  );
}
