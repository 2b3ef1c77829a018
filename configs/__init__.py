"""Pipeline configs (one YAML file each), the schema that reads them, and what every layer may
import: errors and paths."""
