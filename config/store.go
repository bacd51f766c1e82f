package config

import (
	"time"

	"github.com/coatcheck/coatcheck"
)

// The store drivers a file may choose.
const (
	DriverSQLite   = "sqlite"
	DriverRedis    = "redis"
	DriverPostgres = "postgres"
)

// Store says where sessions are kept.
type Store struct {
	// Driver is DriverSQLite, the default, DriverRedis or DriverPostgres. Settings of
	// a driver that is not chosen are refused.
	Driver   string   `yaml:"driver"`
	SQLite   SQLite   `yaml:"sqlite"`
	Redis    Redis    `yaml:"redis"`
	Postgres Postgres `yaml:"postgres"`
	// MaxConcurrent bounds the calls to the store that this node has under way at
	// once; what comes on top waits. Default 256, from 1 to 10000.
	MaxConcurrent int `yaml:"max_concurrent"`
}

// SQLite is the embedded store of a single node.
type SQLite struct {
	// File is the path of the database. Default coatcheck.db. Two nodes can't share it.
	File string `yaml:"file"`
}

// Redis is a store that nodes share: one server at URL, or the servers that Sentinel or
// Cluster name. At most one of the three is in the file.
type Redis struct {
	// URL is redis://HOST:PORT/DB, or rediss:// for TLS. Default
	// redis://127.0.0.1:6379/0, and empty with Sentinel or Cluster. It may name the
	// user; Load moves that name to Username. A password in it is refused.
	URL      string   `yaml:"url"`
	Sentinel Sentinel `yaml:"sentinel"`
	Cluster  Cluster  `yaml:"cluster"`
	// Username is the user of Redis' access control list. Default empty: Redis'
	// default user.
	Username string `yaml:"username"`
	// PasswordFile is the path of a file with the password. At most one of
	// PasswordFile and PasswordEnv is set.
	PasswordFile string `yaml:"password_file"`
	// PasswordEnv names the environment variable that holds the password.
	PasswordEnv string `yaml:"password_env"`
	// Password is what Load read there. It can't be written in the file.
	Password coatcheck.Secret `yaml:"password"`
	TLS      TLS              `yaml:"tls"`
	// KeyPrefix comes before every key. Default empty; at most 64 printable
	// characters without space or braces.
	KeyPrefix string `yaml:"key_prefix"`
	// Timeout bounds one command. Default 1s, from 10ms to 30s.
	Timeout time.Duration `yaml:"timeout"`
}

// Sentinel names the Redis Sentinels that know which server is the master. Without
// Addresses there are none.
type Sentinel struct {
	// Addresses are those of the Sentinels, HOST:PORT each.
	Addresses []string `yaml:"addresses"`
	// Master is the name under which they watch the master. Required with Addresses.
	Master string `yaml:"master"`
	// Database is the number of the database on the master. Default 0, at most 65535.
	Database int `yaml:"database"`
	// Username is the user at the Sentinels themselves. Default empty: their default
	// user. Redis.Username is the one at the master.
	Username string `yaml:"username"`
	// PasswordFile is the path of a file with the password for the Sentinels. At most
	// one of PasswordFile and PasswordEnv is set.
	PasswordFile string `yaml:"password_file"`
	// PasswordEnv names the environment variable that holds it.
	PasswordEnv string `yaml:"password_env"`
	// Password is what Load read there. It can't be written in the file.
	Password coatcheck.Secret `yaml:"password"`
}

// Cluster names servers of a Redis Cluster. Without Addresses there is none.
type Cluster struct {
	// Addresses are those of some of its servers, HOST:PORT each; these know the others.
	Addresses []string `yaml:"addresses"`
}

// TLS says how connections to Redis are encrypted; those to Sentinels likewise.
// Certificates are always verified. Load has read the files once, and they were right.
type TLS struct {
	// Enabled encrypts the connections to the servers that Sentinel or Cluster name.
	// Default false. A URL says it by rediss:// instead, and Load then sets it. The
	// other settings need it.
	Enabled bool `yaml:"enabled"`
	// CAFile is the path of the certificates, in PEM, of those who may vouch for a
	// server. Default the system's.
	CAFile string `yaml:"ca_file"`
	// CertFile is the path of the client's certificate and its chain, in PEM. Default
	// none. It needs KeyFile.
	CertFile string `yaml:"cert_file"`
	// KeyFile is the path of the key to CertFile, in PEM, not encrypted.
	KeyFile string `yaml:"key_file"`
	// ServerName is the name that a server's certificate must have. Default the host
	// by which the server is reached.
	ServerName string `yaml:"server_name"`
}

// Postgres is a store that nodes share.
type Postgres struct {
	// URL is postgres://USER@HOST:PORT,HOST:PORT/DATABASE?PARAMETER=VALUE. Required, and
	// so are user, host and database in it. A password in it is refused. The
	// parameters are sslmode, sslrootcert, sslcert, sslkey, sslnegotiation,
	// target_session_attrs, application_name and search_path, the schema; paths among
	// them are absolute. Without sslmode it is verify-full, or prefer where all hosts
	// are loopback ones; without search_path it is coatcheck.
	URL string `yaml:"url"`
	// PasswordFile is the path of a file with the password. At most one of
	// PasswordFile and PasswordEnv is set.
	PasswordFile string `yaml:"password_file"`
	// PasswordEnv names the environment variable that holds the password.
	PasswordEnv string `yaml:"password_env"`
	// Password is what Load read there. It can't be written in the file.
	Password coatcheck.Secret `yaml:"password"`
	// MaxConnections bounds the connections of this node. Default 16, from 2 to 500.
	MaxConnections int `yaml:"max_connections"`
	// Timeout bounds one call. Default 2s, from 10ms to 30s.
	Timeout time.Duration `yaml:"timeout"`
}

// Cache is the near cache: opened sessions in the node's memory, kept right by the
// store's feed of changes.
type Cache struct {
	// SizeBytes bounds it. Default 67108864, from 1048576 to 1073741824; 0 turns the
	// near cache off.
	SizeBytes int `yaml:"size_bytes"`
	// Lease is how long an entry may be served after the store's feed was heard last.
	// Default 1s, from 100ms to 10s.
	Lease time.Duration `yaml:"lease"`
}
