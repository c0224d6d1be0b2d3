import { Link, MenuItem, TextField } from "@mui/material";
import { useState } from "react";
import { Link as To, useSearchParams } from "react-router";

import { api, data, type Schemas } from "../api/session";
import { bytes } from "../parts/format";
import { List } from "../parts/List";
import { Moment } from "../parts/Moment";
import { Empty, Page } from "../parts/Page";
import { Status } from "../parts/Status";
import { useTexts } from "../texts";

export default function Backups() {
  const { t } = useTexts();
  const [search, setSearch] = useSearchParams();
  const source = search.get("source") ?? "";
  const [typed, setTyped] = useState(source);
  const status = search.get("status") ?? "";
  const change = (name: string, value: string) => {
    const next = new URLSearchParams(search);
    if (value) next.set(name, value);
    else next.delete(name);
    setSearch(next);
  };
  return (
    <Page
      title={t.backups}
      actions={
        <>
          <form onSubmit={(event) => { event.preventDefault(); change("source", typed.trim()); }}>
            <TextField size="small" label={t.source} value={typed} onChange={(event) => { setTyped(event.target.value); }} onBlur={() => { change("source", typed.trim()); }} />
          </form>
          <TextField select size="small" label={t.status} value={status} sx={{ minWidth: 140 }} onChange={(event) => { change("status", event.target.value); }}>
            <MenuItem value="">{t.all}</MenuItem>
            {["complete", "damaged", "deleted"].map((word) => <MenuItem key={word} value={word}>{word}</MenuItem>)}
          </TextField>
        </>
      }
    >
      <List<Schemas["BackupShown"]>
        label={t.backups}
        name={["backups", source, status]}
        load={async (cursor) =>
          data(await api.GET("/api/v1/backups", { params: { query: { ...(cursor ? { cursor } : {}), ...(source ? { source } : {}), ...(status ? { status } : {}) } } }))
        }
        empty={<Empty text={t.noBackups} />}
        columns={[
          { title: t.source, cell: (row) => <Link component={To} to={`/backups/${row.id}`}>{row.source_name}</Link> },
          { title: t.kind, wide: true, cell: (row) => `${row.source_type}, ${row.backup_type}` },
          { title: t.time, cell: (row) => <Moment at={row.completed_at} /> },
          { title: t.status, cell: (row) => <Status value={row.status} /> },
          { title: t.verified, wide: true, cell: (row) => <Moment at={row.verified_at} /> },
          { title: t.size, numeric: true, wide: true, cell: (row) => bytes(row.size) },
          { title: t.stored, numeric: true, wide: true, cell: (row) => bytes(row.compressed_size) },
        ]}
      />
    </Page>
  );
}
