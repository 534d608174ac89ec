"""Code that APIs and workers share. Imports no other package of scenefleet.

Modules in here import each other relatively, so that the wheel can ship the same files a second time as the
package ``scenefleet`` (docs/decisions/0001).
"""
