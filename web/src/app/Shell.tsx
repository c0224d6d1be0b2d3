import { AppBar, Box, Button, Drawer, List, ListItem, ListItemButton, ListItemText, MenuItem, Select, Toolbar, Typography, useColorScheme } from "@mui/material";
import { Suspense, useState } from "react";
import { NavLink, Outlet } from "react-router";

import { type Role, signOut } from "../api/session";
import { useTexts } from "../texts";
import { useMe } from "./me";

const WIDTH = 208;

/** What surrounds every page: where one can go, and who one is. */
export function Shell() {
  const { t, language, choose } = useTexts();
  const { me, may } = useMe();
  const { mode, setMode } = useColorScheme();
  const [open, setOpen] = useState(false);
  const places: [string, string, Role][] = [
    ["/", t.dashboard, "viewer"],
    ["/sources", t.sources, "viewer"],
    ["/backups", t.backups, "viewer"],
    ["/jobs", t.jobs, "viewer"],
    ["/schedules", t.schedules, "viewer"],
    ["/storage", t.storage, "viewer"],
    ["/reports", t.reports, "viewer"],
    ["/inbox", t.inbox, "viewer"],
    ["/users", t.users, "admin"],
    ["/audit", t.audit, "admin"],
    ["/settings", t.settings, "viewer"],
  ];
  const menu = (
    <List component="div" sx={{ p: 1 }}>
      {places
        .filter(([, , role]) => may(role))
        .map(([to, text]) => (
          <ListItem key={to} component="div" disablePadding>
            <ListItemButton
              component={NavLink}
              to={to}
              end={to === "/"}
              onClick={() => { setOpen(false); }}
              sx={{ borderRadius: 1, py: 0.75, "&.active": { bgcolor: "action.selected", fontWeight: 650 } }}
            >
              <ListItemText primary={text} slotProps={{ primary: { sx: { fontWeight: "inherit" } } }} />
            </ListItemButton>
          </ListItem>
        ))}
    </List>
  );
  return (
    <Box sx={{ display: "flex", minHeight: "100vh" }}>
      <AppBar position="fixed" color="inherit" elevation={0} sx={{ borderBottom: 1, borderColor: "divider", zIndex: "modal" }}>
        <Toolbar variant="dense" sx={{ gap: 1 }}>
          <Button sx={{ display: { md: "none" }, minWidth: 0, flexShrink: 0, ml: -1 }} aria-expanded={open} onClick={() => { setOpen(!open); }}>
            {t.menu}
          </Button>
          <Box component="img" src="/icon.svg" alt="" sx={{ width: 26, height: 26, display: { xs: "none", sm: "block" } }} />
          <Typography component="span" sx={{ fontWeight: 650, flexGrow: 1, display: { xs: "none", sm: "block" } }}>
            Lab Backup
          </Typography>
          <Box sx={{ flexGrow: { xs: 1, sm: 0 } }} />
          <Select size="small" variant="standard" disableUnderline value={language} inputProps={{ "aria-label": t.language }} onChange={(event) => { choose(event.target.value); }}>
            <MenuItem value="en">English</MenuItem>
            <MenuItem value="de">Deutsch</MenuItem>
          </Select>
          <Select size="small" variant="standard" disableUnderline value={mode ?? "system"} inputProps={{ "aria-label": `${t.light} / ${t.dark}` }} onChange={(event) => { setMode(event.target.value); }}>
            <MenuItem value="light">{t.light}</MenuItem>
            <MenuItem value="dark">{t.dark}</MenuItem>
            <MenuItem value="system">{t.system}</MenuItem>
          </Select>
          <Button size="small" sx={{ flexShrink: 0, whiteSpace: "nowrap" }} onClick={() => void signOut()} title={me ? `${me.username} (${me.role})` : ""}>
            {t.signOut}
          </Button>
        </Toolbar>
      </AppBar>
      <Box component="nav" aria-label={t.menu} sx={{ width: { md: WIDTH }, flexShrink: 0 }}>
        <Drawer variant="permanent" open sx={{ display: { xs: "none", md: "block" } }} slotProps={{ paper: { sx: { width: WIDTH, pt: 6 } } }}>
          {menu}
        </Drawer>
        <Drawer open={open} onClose={() => { setOpen(false); }} sx={{ display: { md: "none" } }} slotProps={{ paper: { sx: { width: WIDTH, pt: 6 } } }}>
          {menu}
        </Drawer>
      </Box>
      <Box component="main" sx={{ flexGrow: 1, minWidth: 0, p: { xs: 2, md: 3 }, pt: { xs: 9, md: 9 } }}>
        <Suspense fallback={null}>
          <Outlet />
        </Suspense>
      </Box>
    </Box>
  );
}
