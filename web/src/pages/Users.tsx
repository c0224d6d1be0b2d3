import { Button, Dialog, DialogActions, DialogContent, DialogTitle, MenuItem, TextField } from "@mui/material";
import { useMutation, useQueryClient } from "@tanstack/react-query";
import { useState } from "react";

import { api, data, type Role, type Schemas } from "../api/session";
import { List } from "../parts/List";
import { Moment } from "../parts/Moment";
import { Empty, Page } from "../parts/Page";
import { Trouble } from "../parts/Trouble";
import { useTexts } from "../texts";

const ROLES: Role[] = ["viewer", "operator", "admin"];

export default function Users() {
  const { t } = useTexts();
  const queries = useQueryClient();
  const [adding, setAdding] = useState(false);
  const change = useMutation({
    mutationFn: ({ id, body }: { id: string; body: Schemas["UserUpdate"] }) => api.PUT("/api/v1/users/{user_id}", { params: { path: { user_id: id } }, body }),
    onSettled: () => queries.invalidateQueries({ queryKey: ["users"] }),
  });
  return (
    <Page title={t.users} actions={<Button variant="contained" onClick={() => { setAdding(true); }}>{t.add}</Button>}>
      <Trouble error={change.error} />
      <List<Schemas["UserShown"]>
        label={t.users}
        name={["users"]}
        load={async (cursor) => data(await api.GET("/api/v1/users", { params: { query: cursor ? { cursor } : {} } }))}
        empty={<Empty text={t.none} />}
        columns={[
          { title: t.username, cell: (row) => row.username },
          {
            title: t.role,
            cell: (row) => (
              <TextField select size="small" variant="standard" value={row.role} slotProps={{ htmlInput: { "aria-label": `${t.role}: ${row.username}` } }} onChange={(event) => { change.mutate({ id: row.id, body: { role: event.target.value as Role } }); }}>
                {ROLES.map((role) => <MenuItem key={role} value={role}>{role}</MenuItem>)}
              </TextField>
            ),
          },
          { title: t.email, wide: true, cell: (row) => row.email },
          { title: t.lastLogin, wide: true, cell: (row) => <Moment at={row.last_login} /> },
          { title: t.enabled, cell: (row) => <Button size="small" onClick={() => { change.mutate({ id: row.id, body: { enabled: !row.enabled } }); }}>{row.enabled ? t.yes : t.no}</Button> },
        ]}
      />
      {adding && <Add close={() => { setAdding(false); }} />}
    </Page>
  );
}

function Add({ close }: { close: () => void }) {
  const { t } = useTexts();
  const queries = useQueryClient();
  const [body, setBody] = useState<Schemas["UserCreate"]>({ username: "", password: "", email: "", role: "viewer" });
  const add = useMutation({
    mutationFn: () => api.POST("/api/v1/users", { body }),
    onSuccess: async () => {
      await queries.invalidateQueries({ queryKey: ["users"] });
      close();
    },
  });
  return (
    <Dialog open onClose={close} fullWidth maxWidth="xs">
      <DialogTitle>{t.users}: {t.add}</DialogTitle>
      <DialogContent>
        <TextField fullWidth required autoFocus margin="dense" label={t.username} value={body.username} onChange={(event) => { setBody({ ...body, username: event.target.value }); }} />
        <TextField fullWidth required margin="dense" type="password" autoComplete="new-password" label={t.password} value={body.password} onChange={(event) => { setBody({ ...body, password: event.target.value }); }} />
        <TextField fullWidth margin="dense" type="email" label={t.email} value={body.email} onChange={(event) => { setBody({ ...body, email: event.target.value }); }} />
        <TextField select fullWidth margin="dense" label={t.role} value={body.role} onChange={(event) => { setBody({ ...body, role: event.target.value as Role }); }}>
          {ROLES.map((role) => <MenuItem key={role} value={role}>{role}</MenuItem>)}
        </TextField>
        <Trouble error={add.error} />
      </DialogContent>
      <DialogActions>
        <Button onClick={close}>{t.close}</Button>
        <Button variant="contained" disabled={!body.username || !body.password || add.isPending} onClick={() => { add.mutate(); }}>{t.add}</Button>
      </DialogActions>
    </Dialog>
  );
}
