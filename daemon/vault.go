package daemon

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/bailey-platform/bailey/vault"
)

// VaultKeyFile is where the key is that secrets are sealed with, unless vault-key names
// another.
func (c *Config) VaultKeyFile() string { return filepath.Join(c.Data, "vault.key") }

func (c *Config) vaultKey() string {
	if c.VaultKey == "" {
		return "file:" + c.VaultKeyFile()
	}
	return c.VaultKey
}

func (c *Config) vaultOldKeys() []string {
	keys := strings.Split(c.VaultOldKeys, ",")
	for i := range keys {
		keys[i] = strings.TrimSpace(keys[i])
	}
	return slices.DeleteFunc(keys, func(s string) bool { return s == "" })
}

func (c *Config) checkVault() error {
	if err := vault.CheckURL(c.vaultKey()); err != nil {
		return badSetting("vault-key", "%s", err)
	}
	for _, key := range c.vaultOldKeys() {
		if err := vault.CheckURL(key); err != nil {
			return badSetting("vault-old-keys", "%s", err)
		}
	}
	return nil
}

// CheckVaultKey seals and opens something with the key that secrets are sealed with, and
// returns its id. The error of a key file that no start has made yet is fs.ErrNotExist.
func (c *Config) CheckVaultKey(ctx context.Context) (keyID string, err error) {
	v, err := c.newVault()
	if err != nil {
		return "", err
	}
	return v.Check(ctx)
}

func (c *Config) newVault() (*vault.Vault, error) {
	return vault.New(vault.Options{Key: c.vaultKey(), Old: c.vaultOldKeys(), Env: os.LookupEnv})
}
