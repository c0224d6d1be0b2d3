import { createContext, type ReactNode, useContext, useMemo, useState } from "react";

import { de } from "./de";
import { en, type Texts } from "./en";

export type Language = "en" | "de";
const ALL: Record<Language, Texts> = { en, de };
const KEY = "lab-backup.language";

interface Words {
  t: Texts;
  language: Language;
  choose: (language: Language) => void;
}

const Context = createContext<Words>({ t: en, language: "en", choose: () => undefined });

function preferred(): Language {
  const kept = localStorage.getItem(KEY);
  if (kept === "en" || kept === "de") return kept;
  return navigator.language.startsWith("de") ? "de" : "en";
}

export function TextsProvider({ children }: { children: ReactNode }) {
  const [language, setLanguage] = useState<Language>(preferred);
  const words = useMemo(
    () => ({
      t: ALL[language],
      language,
      choose: (chosen: Language) => {
        localStorage.setItem(KEY, chosen);
        document.documentElement.lang = chosen;
        setLanguage(chosen);
      },
    }),
    [language],
  );
  return <Context.Provider value={words}>{children}</Context.Provider>;
}

export function useTexts(): Words {
  return useContext(Context);
}
