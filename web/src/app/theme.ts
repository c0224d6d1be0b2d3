import { createTheme } from "@mui/material/styles";

export const theme = createTheme({
  colorSchemes: {
    light: { palette: { primary: { main: "#17635f" }, info: { main: "#0b5cab" }, success: { main: "#1e6b2c" }, warning: { main: "#8a5000" }, error: { main: "#b3261e" }, background: { default: "#f5f7f7", paper: "#ffffff" } } },
    dark: { palette: { primary: { main: "#6fc7c0" }, background: { default: "#11181a", paper: "#182124" } } },
  },
  cssVariables: { colorSchemeSelector: "data" },
  shape: { borderRadius: 8 },
  typography: {
    fontFamily: 'system-ui, "Segoe UI", Roboto, "Noto Sans", sans-serif',
    h1: { fontSize: "1.6rem", fontWeight: 650 },
    h2: { fontSize: "1.15rem", fontWeight: 650 },
    button: { textTransform: "none", fontWeight: 600 },
  },
  components: {
    MuiButton: { defaultProps: { disableElevation: true } },
    MuiTableCell: { styleOverrides: { head: { fontWeight: 650 } } },
  },
});
