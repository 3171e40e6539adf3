Feature: The site

  Scenario: It answers
    When I open the site
    Then it says ok
